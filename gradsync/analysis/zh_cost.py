"""Chinese for the cost model."""

from __future__ import annotations

CATALOGUE: dict[str, str] = {
    # Answers.
    "the link's bandwidth": "链路带宽",
    "the latency of messages": "消息延迟",
    "adding up received gradients": "累加收到的梯度",
    "computing": "计算本身",
    "{link}, {count} replicas: a step of {row} takes {step} ms; your bottleneck is {what}: without it, the step would "
    "be {gain} shorter ({others}).":
        "{link}，{count} 个副本：{row} 的一步需 {step} ms；瓶颈是{what}：若不花时间，这一步会缩短 {gain}（{others}）。",
    "{what}: {gain}": "{what}：{gain}",
    "{link}: {row} would pay from {first} hosts on.": "{link}：从 {first} 台主机起，{row} 划算。",
    "{link}: {row} would pay from {first} to {last} hosts.": "{link}：{first} 至 {last} 台主机时，{row} 划算。",
    "{link}: {row} would not pay at any number of hosts up to {last}: it is slower.":
        "{link}：在 {last} 台主机以内，{row} 都不划算：它更慢。",
    "{link}: whether {row} would pay cannot be told at any number of hosts up to {last}: nowhere is it faster by more "
    "than the model's error.":
        "{link}：在 {last} 台主机以内，都无法判断 {row} 是否划算：它快出的部分从未超过模型误差。",
    "{link}: {row} is nowhere slower than {other} by more than the model's error.":
        "{link}：{row} 比 {other} 慢的部分从未超过模型误差。",
    "{link}: {row}, with one server, is slower than {other} from {first} replicas on.":
        "{link}：{row}（一个服务器）从 {first} 个副本起比 {other} 慢。",
    # The report.
    "a step of a ring, on top of the link's latency, us": "环形规约的一步，不含链路延迟，us",
    "a message between two ranks, likewise, us": "两个进程之间的一条消息，不含链路延迟，us",
    "to send a MB, and again to receive it, us of a processor": "发送 1 MB（接收亦然），处理器 us",
    "to add a received MB to one's own, us of a processor": "把收到的 1 MB 加到自己的数据上，处理器 us",
    "to write a MB of gradients into the buffer that is sent, us of a processor":
        "把 1 MB 梯度写入发送缓冲区，处理器 us",
    "share of the shorter of link and processor that the longer does not hide":
        "链路与处理器中较短者未被较长者掩盖的份额",
    "HOW FAR THE MODEL CAN BE TRUSTED, on emulated hosts that share one machine's processors: it was fitted to one "
    "half of the measured cells and judged by the other, and the other way round; and fitted to the smaller numbers "
    "of hosts and judged by the largest.":
        "模型可信到什么程度（在共用一台机器处理器的模拟主机上）：用一半实测单元拟合，用另一半评判，再反过来；"
        "另用较少的主机数拟合，用最多的主机数评判。",
    "judged by": "评判依据",
    "median error": "误差中位数",
    "worst error": "最大误差",
    "cells held out": "未参与拟合的单元",
    "the largest number of hosts": "最多的主机数",
    "cells held out, by row": "未参与拟合的单元，按行",
    "fitted to all cells": "用全部单元拟合",
    "value": "数值",
    "{hosts} hosts: measured ms (error of the prediction)": "{hosts} 台主机：实测 ms（预测误差）",
    "known within a factor of": "已知精度（倍数）",
    "On held-out cells of emulated hosts the model's median error was {median}, its worst {worst}; no larger cluster "
    "was measured.":
        "在未参与拟合的模拟主机单元上，模型误差的中位数为 {median}，最大为 {worst}；没有实测过更大的集群。",
    "{ours} Of the runs here ({count}) the farthest is {off} off.":
        "{ours} 此处 {count} 次运行中，误差最大的为 {off}。",
    "PREDICTED, NOT MEASURED: {model}, from the compute profile and links of {name}.":
        "预测，并非实测：{model}，依据 {name} 的计算剖面与链路。",
    "runs here": "此处的运行",
    "replicas": "副本数",
    "measured ms": "实测 ms",
    "predicted ms": "预测 ms",
    "error": "误差",
    "Two predictions that differ by less than {share} are not told apart.": "相差不到 {share} 的两个预测视为无法区分。",
}
