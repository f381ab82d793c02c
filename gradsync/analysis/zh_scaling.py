"""Chinese for the speed-up study."""

from __future__ import annotations

CATALOGUE: dict[str, str] = {
    # Checks.
    "ranks": "进程数",
    "superlinear": "超线性",
    "cores": "核心",
    "reference": "参照",
    "learning rate / global batch": "学习率 / 全局批量",
    "learning rate / replicas": "学习率 / 副本数",
    "threads per rank": "每进程线程数",
    "efficiency {share}, at least {low}, n = {n}": "效率 {share}，至少 {low}，n = {n}",
    "the single device was slowed down: another load, too little memory, fewer threads":
        "单设备被拖慢：其他负载、内存不足或线程较少",
    "run the study again on an idle machine, with --repeats": "在空闲的机器上加 --repeats 重新运行",
    "{ranks} ranks with {threads} thread(s) each on {cores} core(s)":
        "{ranks} 个进程，各 {threads} 个线程，共 {cores} 个核心",
    "ranks take turns on the cores": "各进程轮流使用核心",
    "read this point as what sharing cores costs, not as what devices add":
        "此点反映共用核心的代价，而不是增加设备的收益",
    "{file}: {ranks} ranks": "{file}：{ranks} 个进程",
    "a file lies in the folder of another point": "文件位于另一个点的目录中",
    "run the study again": "重新运行整个研究",
    "the points trained differently": "各点的训练方式不同",
    "run the whole study with the same flags": "用相同的参数运行整个研究",
    "run the whole study on the same machine in one go": "在同一台机器上一次运行整个研究",
    "machine and versions are equal in {count} runs": "{count} 次运行的机器与版本相同",
    "points with more threads compute faster whatever the method does": "线程较多的点计算更快，与方法无关",
    "set OMP_NUM_THREADS to the same number for all points": "为所有点设置相同的 OMP_NUM_THREADS",
    "threads per rank are equal in {count} runs": "{count} 次运行的每进程线程数相同",
    "not every file tells batch and replicas": "并非每个文件都给出批量和副本数",
    "neither one global batch nor one batch per replica for all": "既不是统一的全局批量，也不是统一的每副本批量",
    "runs of different length": "各次运行的长度不同",
    "one global batch for all": "所有运行的全局批量相同",
    "one batch per replica for all": "所有运行的每副本批量相同",
    "there is no run of the single device": "没有单设备的运行",
    "ranks_1/results_single.json is missing": "缺少 ranks_1/results_single.json",
    # Rows.
    "{name}, ranks: {ranks}": "{name}，进程数：{ranks}",
    "needs {count} ranks": "需要 {count} 个进程",
    "no results file": "没有结果文件",
    "Ranks": "进程",
    "Total s": "总时间 s",
    "Batch ms": "每批 ms",
    "Efficiency": "效率",
    "per rank": "每进程",
    "exposed communication": "暴露通信",
    "rest": "其余",
    "in all": "合计",
    "Efficiency lost, points": "损失的效率（百分点）",
    # Report.
    "NOT COMPARABLE: speed-ups are withheld, because:": "不可比较：不给出加速比，原因如下：",
    "NO SPEED-UP: there is no run of the single device to compare with.": "没有加速比：缺少可供比较的单设备运行。",
    "WEAK SCALING: a batch of {batch} for each replica, so more replicas do more work in a step; {repeats}.":
        "弱扩展：每个副本的批量为 {batch}，因此副本越多，每步的工作量越大；{repeats}。",
    "STRONG SCALING: one global batch of {batch} at every number of ranks; {repeats}.":
        "强扩展：各进程数下的全局批量均为 {batch}；{repeats}。",
    "Whether the global batch stays the same is not known; {repeats}.": "全局批量是否保持不变未知；{repeats}。",
    "each run made once, so no range is known": "每项只运行一次，因此没有范围",
    "{count} repeats, figures are medians (and ranges) over them": "重复 {count} 次，数值为中位数（及范围）",
    "{name}: {speedup} times the throughput of the single device on {replicas} replica(s), efficiency {efficiency}":
        "{name}：{replicas} 个副本的吞吐量为单设备的 {speedup} 倍，效率 {efficiency}",
    "{figures}.": "{figures}。",
    "of the {points} points that are missing: {parts}": "缺失的 {points} 个百分点中：{parts}",
    "the others not known": "其余未知",
    "{points} {part}": "{part} {points}",
    "Total is the training part of all epochs, evaluation excluded. Speed-up is throughput / throughput of the single "
    "device in the same repeat; efficiency is speed-up / replicas, and per rank speed-up / ranks.":
        "总时间为所有轮的训练部分，不含评估。加速比为吞吐量 / 同一次重复中单设备的吞吐量；"
        "效率为加速比 / 副本数，每进程效率为加速比 / 进程数。",
    "A server is a rank but no replica: efficiency per replica judges the synchronisation, efficiency per rank what "
    "the hardware is used for.":
        "服务器是进程而不是副本：每副本效率衡量同步方式，每进程效率衡量硬件的利用。",
    "Data wait is measured in training; compute (a step without synchronisation) and exposed communication come from "
    "the probe before it; rest is what these leave of the step, and may be negative, because they are other steps. The "
    "single device has no probe: its compute is its phases of computing and updating.":
        "等待数据在训练中测得；计算（不含同步的一步）和暴露通信来自训练前的探测；其余是每步中剩下的部分，由于来自不同的步，可能为负。单设备没有探测：其计算为计算与更新阶段之和。",
    "What each part takes beyond a perfect division of the single device's step, as a share of the step: in all that "
    "is 100 - efficiency. Computing costs efficiency where a smaller share of the batch or a shared memory make each "
    "sample slower.":
        "各部分超出理想均分单设备一步的时间，占每步的百分比：合计为 100 - 效率。"
        "较小的批量份额或共用的内存使每个样本变慢时，计算也会损失效率。",
    "Audit of the study:": "研究的审核：",
    "Each point in full:": "各点的完整报告：",
    "Speed-up study: methods of gradient synchronisation": "加速研究：梯度同步方法",
    "Speed-up study": "加速研究",
    "{step} ms": "{step} ms",
    "Speed-up over the single device": "相对单设备的加速比",
    "Where the time of a step goes": "每步的时间去向",
    "Lines of speed-up and efficiency by replicas, against ideal": "按副本数的加速比与效率折线图，并与理想值对照",
    "Stacked bars of the parts of a step at each number of ranks": "各进程数下每步组成的堆叠柱状图",
}
