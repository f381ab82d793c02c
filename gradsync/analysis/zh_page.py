"""Chinese for ``report.html``: what stands in it and not in the text report."""

from __future__ import annotations

CATALOGUE: dict[str, str] = {
    # Conclusions.
    "{name} is the fastest: {speed} img/s, {gain} more than {other} ({other_speed} img/s).":
        "{name} 最快：{speed} img/s，比 {other}（{other_speed} img/s）高 {gain}。",
    "{name} is the slowest: {speed} img/s, {share} of the throughput of {other}.":
        "{name} 最慢：{speed} img/s，为 {other} 吞吐量的 {share}。",
    "No winner is shown: {names} differ by no more than their epoch-to-epoch ranges.":
        "未能分出胜负：{names} 之间的差异不超过各轮之间的波动范围。",
    "No winner can be named: the ranges of {names} are not all known, so their differences cannot be judged.":
        "无法判定胜负：{names} 的波动范围不全已知，因此无法判断其差异。",
    "All ended at a training loss of {loss}.": "所有方法的最终训练损失均为 {loss}。",
    "They ended at training losses from {low} to {high}.": "最终训练损失在 {low} 到 {high} 之间。",
    "All reached a best validation accuracy of {accuracy} %.": "所有方法的最佳验证准确率均为 {accuracy} %。",
    "Best validation accuracies differ by {gap} points, no more than one standard error ({error} points): "
    "no difference shown.":
        "最佳验证准确率相差 {gap} 个百分点，不超过一个标准误（{error} 个百分点）：未显示出差异。",
    "Best validation accuracies differ by {gap} points; one standard error is {error} points.":
        "最佳验证准确率相差 {gap} 个百分点；一个标准误为 {error} 个百分点。",
    "a step takes {step} ms: {parts}": "每步耗时 {step} ms：{parts}",
    "{share} {segment}": "{segment} {share}",
    # Pictures.
    "{kind}. {figures}.": "{kind}。{figures}。",
    "no complete run": "没有完整的运行",
    "invalid, see the audit": "无效，见审核",
    "{median} ({low} to {high})": "{median}（{low} 到 {high}）",
    "from {first} at step 1 to {last} in the last epoch": "从第 1 步的 {first} 到最后一轮的 {last}",
    "best {accuracy}": "最佳 {accuracy}",
    "Throughput": "吞吐量",
    "Bar chart of throughput in img/s, median and range over the epochs": "吞吐量柱状图（img/s），各轮的中位数与范围",
    "Training time": "训练时间",
    "Bar chart of seconds per epoch, median and range over the epochs": "每轮秒数柱状图，各轮的中位数与范围",
    "Training loss": "训练损失",
    "Curves of the training loss per optimizer step": "每个优化步的训练损失曲线",
    "Validation accuracy": "验证准确率",
    "Curves of the validation accuracy in % after each epoch": "每轮之后的验证准确率曲线（%）",
    "Communication per step": "每步的通信",
    "Bar chart of exposed communication in ms per step": "每步暴露通信柱状图（ms）",
    "Where the time of a step went": "一步的时间去向",
    "Stacked bars of the milliseconds of a step": "一步各部分毫秒数的堆叠柱状图",
    # Headings and columns.
    "Performance report: methods of gradient synchronisation": "性能报告：梯度同步方法",
    "Methods of gradient synchronisation": "梯度同步方法",
    "Contents": "目录",
    "Comparison": "比较",
    "Ranking": "排名",
    "Runs": "运行",
    "Missing": "缺少",
    "Convergence": "收敛",
    "Plots": "图表",
    "The charts are labelled in English.": "图表中的文字为英文。",
    "Where the time went": "时间去向",
    "Communication": "通信",
    "Equivalence": "等价性",
    "Audit": "审核",
    "What passed": "已通过的检查",
    "Recipe": "训练配置",
    "Flags": "参数",
    "Data set": "数据集",
    "Model": "模型",
    "Environment": "环境",
    "What these numbers do not show": "这些数字没有说明什么",
    "Replicas (ranks)": "副本数（rank 数）",
    "Throughput img/s": "吞吐量 img/s",
    "Time per epoch s": "每轮时间 s",
    "Step ms": "每步 ms",
    "Exposed comm. ms": "暴露通信 ms",
    "Check": "检查项",
    "Run": "运行",
    "Figures": "数据",
    "Probable cause": "可能原因",
    "What to do": "处理办法",
    "all runs": "所有运行",
    "(only {names})": "（仅 {names}）",
    "{name} against baseline_ddp: no difference shown yet ({low} to {high} times its throughput): {n} pairs are too "
    "few to trust this interval; run more --repeats.":
        "{name} 与 baseline_ddp 相比：尚未显示差异（吞吐量为其 {low} 至 {high} 倍）：{n} 对太少，该区间不可信；"
        "请增加 --repeats。",
    # Repeats.
    "Repeats: methods of gradient synchronisation": "重复实验：梯度同步方法",
    "Repeats of a comparison": "重复比较",
    "COMPARABLE WITH RESERVATIONS: the audit doubts or rejects figures of {names}; see their reports.":
        "有保留地可比较：审核对 {names} 的数据存疑或不予采信，见各自的报告。",
    "COMPARABLE: the audit of no repeat objects to anything.": "可比较：各次重复的审核均无异议。",
    "Throughput against DDP, by repeat": "各次重复中相对 DDP 的吞吐量",
    "Ratios of throughput with their 95% intervals": "吞吐量之比及其 95% 区间",
}
