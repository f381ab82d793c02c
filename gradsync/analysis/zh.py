"""The Chinese catalogue: English template -> Chinese template with the same placeholders.

Here what the reports say; ``zh_audit`` holds what the checks say. A test finds every text that is missing.
"""

from __future__ import annotations

from gradsync.analysis.zh_audit import AUDIT

LISTS = {
    ", ": "、",
    " and ": " 和 ",
    ", and ": "，且",
    "; ": "；",
    " ": "",
    "none": "无",
    "not known": "未知",
}

# Verdicts, phases, methods, and the parts of a file.
VOCABULARY = {
    "pass": "通过",
    "note": "提示",
    "suspect": "可疑",
    "invalid": "无效",
    "failed": "失败",
    "DDP": "DDP",
    "All-reduce": "全规约",
    "Parameter server": "参数服务器",
    "Single device": "单设备",
    "data wait": "等待数据",
    "pull": "拉取",
    "compute": "计算",
    "compute + comm. (not separable)": "计算 + 通信（无法分开）",
    "exposed comm. (from the probe)": "暴露通信（探测所得）",
    "all-reduce": "全规约",
    "push": "推送",
    "optimizer": "优化器",
    "other": "其他",
    "flag": "参数",
    "data set": "数据集",
    "model": "模型",
    "faster": "快",
    "slower": "慢",
    "more": "多",
    "less": "少",
    "{share} faster": "快 {share}",
    "{share} slower": "慢 {share}",
}

TABLES = {
    "Method": "方法",
    "Replicas": "副本",
    "(ranks)": "（进程）",
    "Replicas (ranks)": "副本（进程）",
    "Through-": "吞吐量",
    "put img/s": "img/s",
    "Throughput img/s": "吞吐量 img/s",
    "Time per": "每轮用时",
    "epoch s": "s",
    "Time per epoch s": "每轮用时 s",
    "Step": "每步",
    "Step ms": "每步 ms",
    "Exposed": "暴露通信",
    "comm. ms": "ms",
    "Exposed comm. ms": "暴露通信 ms",
    "Speed-up": "加速比",
    "Final": "最终",
    "train loss": "训练损失",
    "Best val": "最佳验证",
    "acc. %": "准确率 %",
    "Verdict": "判定",
    "withheld": "不予给出",
    "min - max": "最小 - 最大",
    "Train loss": "训练损失",
    "Best val acc. %": "最佳验证准确率 %",
    "First loss": "首步损失",
    "Final train loss": "最终训练损失",
    "Final val loss": "最终验证损失",
    "Final train acc. %": "最终训练准确率 %",
    "Steps": "步数",
    "Reference": "参照",
    "Largest loss difference": "最大损失差",
    "Final parameters": "最终参数",
    "ms per step": "每步 ms",
    "step": "整步",
    "Exposed ms": "暴露 ms",
    "quartiles": "四分位数",
    "of the step": "占每步",
    "Pull ms": "拉取 ms",
    "All-reduce ms": "全规约 ms",
    "Push ms": "推送 ms",
    "MB/replica": "MB/副本",
    "MB/server": "MB/服务器",
    "no difference shown": "未显示差异",
    "spread not known": "波动范围未知",
    "n/a (synthetic)": "不适用（合成数据）",
    "img/s, median": "img/s，中位数",
    "against baseline_ddp": "相对 baseline_ddp",
    "95% interval": "95% 区间",
    "{low} - {high}": "{low} - {high}",
}

CERTIFICATE = {
    "identical": "完全相同",
    "{share} of the way": "路程的 {share}",
    "different, not measured": "不同，未测量距离",
    "{value} at step {step}": "第 {step} 步 {value}",
    "equivalent": "等价",
    "equivalent up to amplified rounding": "除被放大的舍入误差外等价",
    "not shown: another recipe": "未证明：训练配置不同",
    "not claimed: asynchronous": "不作断言：异步方法",
    "not shown: the update rule is not known": "未证明：更新规则未知",
    "within the noise of the seed": "在随机种子的噪声之内",
    "not shown: BatchNorm over other shares": "未证明：BatchNorm 的样本份额不同",
    "within the noise of batches": "在批次噪声之内",
    "not equivalent": "不等价",
    "not shown: no losses per step": "未证明：没有逐步损失",
    "same losses, other parameters": "损失相同，参数不同",
    "No two runs with a common reference.": "没有两个运行具有共同的参照。",
    "Synchronous methods with one recipe compute the same updates, up to rounding. Distance of the final parameters as "
    "a share of the reference's way from its start to its end, where the files hold sketches of the parameters.":
        "训练配置相同的同步方法，除舍入误差外应计算出相同的更新。最终参数的距离以参照运行从起点到终点的路程为单位给出，"
        "前提是文件中含有参数草图。",
}

REPORT = {
    "PERFORMANCE REPORT: METHODS OF GRADIENT SYNCHRONISATION": "性能报告：梯度同步方法",
    "VERDICT": "结论",
    "RUNS": "运行",
    "CONVERGENCE": "收敛",
    "EQUIVALENCE": "等价性",
    "WHERE THE TIME WENT": "时间去向",
    "COMMUNICATION": "通信",
    "AUDIT": "审核",
    "RECIPE": "训练配置",
    "ENVIRONMENT": "运行环境",
    "WHAT THESE NUMBERS DO NOT SHOW": "这些数字不能说明什么",
    "Missing:": "缺少：",
    "Written:": "已写出：",
    "no speed-up": "无法给出加速比",
    "not compared": "不参与比较",
    "scaling efficiency is not known": "扩展效率未知",
    "results_{name}.json: {without_it}; to run: {command}": "results_{name}.json：{without_it}；运行命令：{command}",
    "started {time}": "开始于 {time}",
    "ended {time}": "结束于 {time}",
    "FAILED: {error}": "失败：{error}",
    "no reason given": "未说明原因",
    "{run}: {figures}": "{run}：{figures}",
    "{run}: {figures}.": "{run}：{figures}。",
    "{figures}.": "{figures}。",
    "{title} ({file})": "{title}（{file}）",
    "{method} ({variant})": "{method}（{variant}）",
    "{verdict}: {finding}": "{verdict}：{finding}",
    "{check}, {run}": "{check}（{run}）",
    "{check}: {figures}.": "{check}：{figures}。",
    "Cause: {cause}.": "原因：{cause}。",
    "To do: {action}.": "处理办法：{action}。",
    "Nothing to object to.": "没有异议。",
    "Findings of the audit:": "审核发现：",
    "Further findings:": "其他发现：",
    "Not known, because files lack it: {checks} (see the report).": "因文件缺少内容而未知：{checks}（见报告）。",
    '{passed} of {total} findings are "pass".': "{total} 项检查结果中有 {passed} 项为“通过”。",
    "{title} {key}: {value}": "{title} {key}：{value}",
    "{title} {key}: {value} (only {names})": "{title} {key}：{value}（仅 {names}）",
    "{title}: not known": "{title}：未知",
    "{key}: {value}": "{key}：{value}",
    "{key}: {value} (only {names})": "{key}：{value}（仅 {names}）",
    "Throughput, time and step are medians over the epochs of one run per method.":
        "吞吐量、用时和每步时间都是每种方法一次运行中各轮的中位数。",
    "Replicas compute gradients; ranks are what torchrun started.": "副本计算梯度；进程是 torchrun 启动的全部进程。",
    'Speed-up is throughput relative to baseline_ddp: "~" no difference shown, smaller than the epoch-to-epoch range; '
    '"?" spread not known.':
        "加速比是相对于 baseline_ddp 的吞吐量：“~”表示未显示差异，即差异小于各轮之间的波动范围；“?”表示波动范围未知。",
    "Accuracies and losses are not ranked either: the runs are not comparable.":
        "准确率和损失同样不予排名：这些运行不可比较。",
    "On {count} validation images one standard error of an accuracy is {error} points; a smaller difference of "
    "accuracy is no difference.":
        "对 {count} 张验证图像，准确率的一个标准误差为 {error} 个百分点；小于它的准确率差异不算差异。",
    "{names}: synthetic images and labels, so there is no accuracy to reach.":
        "{names}：图像和标签是合成的，因此没有可达到的准确率。",
    "{names}: not known, the file holds no phases.": "{names}：未知，文件中没有各阶段用时。",
    'Means over replicas, in the epoch of median length. "other" is training time outside any phase. A communication '
    "phase also contains the wait for slower peers. A parameter server's optimizer runs on the server, inside its "
    "workers' pull or push.":
        "取用时为中位数的那一轮，对各副本求平均。“其他”是不属于任何阶段的训练时间。通信阶段也包含等待较慢同伴的时间。"
        "参数服务器的优化器在服务器上运行，落在工作进程的拉取或推送之内。",
    "Exposed communication is the step time minus the time of the same step without synchronisation: one definition "
    "for every method. Pull, all-reduce and push are measured phases and contain the wait for peers. MB are sent per "
    "step.":
        "暴露通信时间等于每步时间减去同一步在不同步时的时间，所有方法使用同一定义。拉取、全规约和推送是实测的阶段，"
        "包含等待同伴的时间。MB 是每步发送的数据量。",
    "{name}: its step takes {step} ms {more_or_less} than the baseline's, its exposed communication is {exposed} ms "
    "{more_or_less_exposed}.":
        "{name}：每步时间比基线{more_or_less} {step} ms，暴露通信时间{more_or_less_exposed} {exposed} ms。",
    "{name}: scaling efficiency {share} (throughput / (replicas x throughput of the single device)).":
        "{name}：扩展效率 {share}（吞吐量 /（副本数 x 单设备吞吐量））。",
    "The single device computed with another number of threads than a rank of the others ({threads}), so these "
    "efficiencies tell what splitting one machine costs, not what adding machines gains.":
        "单设备运行所用的线程数与其他运行的每个进程不同（{threads}），因此这里的效率说明的是拆分一台机器的代价，"
        "而不是增加机器的收益。",
    "The spread between runs: there is one run per method (n = 1), and the ranges above are over its epochs. Another "
    "seed, another day or another machine may move every figure.":
        "运行之间的波动：每种方法只有一次运行（n = 1），上面的范围是各轮之间的。换一个随机种子、换一天或换一台机器，"
        "每个数字都可能变动。",
    "The speed of a GPU: these are times of a CPU.": "GPU 的速度：这些是 CPU 上的时间。",
    "The speed of a GPU: these are times of a CPU, whose {cores} cores are shared by {ranks} ranks.":
        "GPU 的速度：这些是 CPU 上的时间，其 {cores} 个核由 {ranks} 个进程共用。",
    "A network: all ranks ran on one host ({transport}). Between hosts communication takes longer, and differently so "
    "for each method.":
        "网络：所有进程都在同一台主机上（{transport}）。跨主机的通信耗时更长，而且各方法变慢的程度不同。",
    "Equal hardware: {name} computes on {replicas} of {ranks} ranks, the rest serves parameters.":
        "相同的硬件：{name} 的 {ranks} 个进程中只有 {replicas} 个参与计算，其余提供参数服务。",
    "What communication costs {names}: exposed communication was not measured.":
        "{names} 的通信代价：没有测量暴露通信时间。",
    "Accuracy of {names}: the data is synthetic.": "{names} 的准确率：数据是合成的。",
}

VERDICT = {
    "NOTHING TO COMPARE: no run is complete.": "无从比较：没有完整的运行。",
    "NOTHING TO COMPARE: one complete run ({names}).": "无从比较：只有一个完整的运行（{names}）。",
    "NOTHING TO COMPARE: fewer than two of {count} runs have figures that hold.":
        "无从比较：{count} 个运行中，数字站得住脚的不足两个。",
    "NOT COMPARABLE: ranking and speed-ups are withheld, because:": "不可比较：不给出排名和加速比，原因如下：",
    'COMPARABLE AS FAR AS KNOWN: nothing contradicts the figures of {names}, but not everything could be checked (see '
    'what is "not known" below).':
        "就已知内容而言可以比较：没有什么与 {names} 的数字相矛盾，但并非所有内容都能核查（见下文“未知”各项）。",
    "COMPARABLE: {names} used the same recipe, global batch and machine, and their figures agree with each other.":
        "可以比较：{names} 使用了相同的训练配置、全局批次和机器，各项数字彼此一致。",
    'COMPARABLE WITH RESERVATIONS: {names} can be ranked, but some of their figures are doubtful (see "suspect" '
    "below).":
        "可以比较，但有保留：{names} 可以排名，不过其中有些数字可疑（见下文“可疑”各项）。",
    'Not ranked: {names} (see "invalid" below).': "不参与排名：{names}（见下文“无效”各项）。",
    "{name} is {change} {direction} than baseline_ddp, more than the epoch-to-epoch range ({range}).":
        "{name} 比 baseline_ddp {direction} {change}，超过各轮之间的波动范围（{range}）。",
    "{name} against baseline_ddp: no difference shown ({change}, within the epoch-to-epoch range of {range}).":
        "{name} 与 baseline_ddp 相比：未显示差异（{change}，在各轮之间的波动范围 {range} 以内）。",
    "{name} against baseline_ddp: {change} {direction}, but one epoch has no range to judge this by; run with more "
    "--epochs.":
        "{name} 与 baseline_ddp 相比{direction} {change}，但只有一轮，没有波动范围可作判断；请增大 --epochs 再运行。",
    "No baseline (results_baseline_ddp.json), so no speed-up can be given.":
        "没有基线（results_baseline_ddp.json），因此无法给出加速比。",
}

REPEATS = {
    "{count} repeats with seeds {seeds}, the methods in rotating order. Each repeat is audited by itself; ratios are "
    "those within a repeat (geometric mean, 95% bootstrap interval).":
        "重复 {count} 次，随机种子为 {seeds}，各方法轮换顺序。每次重复单独审核；比值是同一次重复之内的比值"
        "（几何平均，95% 自助法区间）。",
    "{name}: not compared; it takes two repeats in which it and baseline_ddp are sound.":
        "{name}：未比较；需要至少两次重复，其中它与 baseline_ddp 都没有问题。",
    "{name} is {change} {direction} than baseline_ddp ({low} to {high} times its throughput, {n} pairs).":
        "{name} 比 baseline_ddp {direction} {change}（吞吐量为其 {low} 至 {high} 倍，{n} 对）。",
    "{name} against baseline_ddp: no difference shown ({low} to {high} times its throughput, {n} pairs).":
        "{name} 与 baseline_ddp 相比：未显示差异（吞吐量为其 {low} 至 {high} 倍，{n} 对）。",
    "Each repeat in full:": "各次重复的完整报告：",
}

CATALOGUE: dict[str, str] = LISTS | VOCABULARY | TABLES | CERTIFICATE | REPORT | VERDICT | REPEATS | AUDIT
