"""Chinese for the probe of the links and for the lower bounds."""

from __future__ import annotations

CATALOGUE: dict[str, str] = {
    "Links": "链路",
    "Distance from the least": "与下界的距离",
    "Link MB/s": "链路 MB/s",
    "Slowest pair": "最慢的一对",
    "both ways": "双向",
    "Latency us": "延迟 us",
    "All-reduce MiB": "全规约 MiB",
    "At least ms": "至少 ms",
    "co-located": "同置",
    "Exchange ms": "交换 ms",
    "x least": "x 下界",
    "links": "链路",
    "lower bound": "下界",
    "Measured before training, between ranks that start together. Link: the most that one host's link, or on one host "
    "one rank's, was seen to carry in one direction. algbw and busbw are those of nccl-tests: size / time, and for an "
    "all-reduce over n ranks 2 (n - 1) / n times that.":
        "训练前在同时开始的进程之间测得。链路：一台主机的链路（单机时为一个进程的链路）单方向上测得的最大带宽。"
        "algbw 和 busbw 与 nccl-tests 的定义相同：大小 / 时间；n 个进程的全规约再乘以 2 (n - 1) / n。",
    "At least: the least that the exchange of a step takes over links of that bandwidth, whatever the software; "
    "co-located: the same with a server beside each worker. Where ranks share a host, only what leaves it counts. "
    "A multiple of the exchange alone is 1 or more, up to the 10% within which a probe finds a bandwidth. Exposed "
    "communication can be below 1: what overlaps with computing does not show in the step. It can also be above the "
    "exchange alone, since ranks compute for unequal times and wait for each other.":
        "至少：在该带宽的链路上，一步的交换无论用什么软件都至少需要的时间；同置：每个工作进程旁都有一个服务器时的下界。"
        "多个进程共用一台主机时，只计离开主机的数据。单独测得的交换应为下界的 1 倍以上，"
        "但探测带宽本身有 10% 的误差。暴露通信可以低于 1 倍：与计算重叠的部分不会体现在每步时间中。"
        "它也可能高于单独的交换，因为各进程的计算时间不等，需要互相等待。",
    "On one host ranks share processors and memory, so there the least is no limit, only a yardstick.":
        "单机上各进程共用处理器和内存，因此那里的下界不是极限，只是一把尺子。",
    "one and a half times the fastest transfer that --probe-links saw, {measured} GB/s":
        "--probe-links 测得的最快传输 {measured} GB/s 的一倍半",
    "{count} bandwidths are bytes / seconds": "{count} 个带宽都等于字节数 / 秒数",
    "{name} of {size} bytes in {time} ms is {value} MB/s, and the file says {stated}":
        "{size} 字节用时 {time} ms，{name} 应为 {value} MB/s，而文件中为 {stated}",
    "the link is said to carry {stated} MB/s, and its measurements show {best}":
        "文件称链路带宽为 {stated} MB/s，而其测量值显示为 {best}",
    "the file was changed, or another tool wrote it": "文件被改动过，或由其他工具写成",
    "run it again with --probe-links": "加上 --probe-links 重新运行",
    "the exchange alone takes {time} ms (n = {n}), {multiple} of the {least} ms that it takes at least over links of "
    "{rate} MB/s":
        "单独的交换用时 {time} ms（n = {n}），是在 {rate} MB/s 的链路上至少需要的 {least} ms 的 {multiple} 倍",
    "ranks of one host share processors and memory, so a probe's figures are no limit there":
        "单机上各进程共用处理器和内存，因此探测所得的数值不是极限",
    "the exchange was not waited for to its end, or something else used the links while they were probed":
        "没有等到交换结束就停止了计时，或者探测时链路上有其他流量",
    "wait for the device and for all ranks before a timer stops; probe again on quiet links":
        "停止计时前先等待设备和所有进程；在链路空闲时重新探测",
}
