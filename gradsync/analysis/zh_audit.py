"""The Chinese catalogue of the audit: names of checks, figures, causes, and what to do."""

from __future__ import annotations

CHECKS = {
    "finished": "运行完成",
    "values": "数值范围",
    "samples": "样本守恒",
    "same samples": "样本数一致",
    "summary": "汇总",
    "phases": "阶段用时",
    "step time": "每步时间",
    "clocks": "时钟",
    "bandwidth": "带宽",
    "warm-up": "预热",
    "stragglers": "慢副本",
    "threads": "线程",
    "replicas": "副本一致",
    "server updates": "服务器更新",
    "staleness": "陈旧度",
    "resumed": "断点续跑",
    "evaluation": "评估",
    "input-bound": "受限于输入",
    "recipe": "训练配置",
    "environment": "运行环境",
    "updates": "更新次数",
    "start": "起点",
    "trajectory": "轨迹",
    # what is compared
    "learning rate at the end of each epoch": "各轮结束时的学习率",
    "global batch": "全局批次",
    "optimizer steps": "优化步数",
    "number of epochs": "轮数",
    "evaluated samples": "评估样本数",
    "validation transforms": "验证变换",
    "initial parameters": "初始参数",
    "{key} is {values}": "{key}：{values}",
    "{value} in {files}": "{value}（{files}）",
    "{key} {value}": "{key} {value}",
}

SAMPLES = {
    "throughput, time or number of samples is not in the file": "文件中缺少吞吐量、时间或样本数",
    "throughput x time = samples in {known} of {total} epochs (ratio {ratio})":
        "{total} 轮中有 {known} 轮满足吞吐量 x 时间 = 样本数（比值 {ratio}）",
    "epoch {epoch}: {throughput} img/s x {time} s = {claimed} samples, {ratio} times the {consumed} consumed "
    "({source}); corrected throughput {corrected} img/s":
        "第 {epoch} 轮：{throughput} img/s x {time} s = {claimed} 个样本，是实际使用的 {consumed} 个的 {ratio} 倍"
        "（{source}）；更正后的吞吐量为 {corrected} img/s",
    "epochs[].samples": "epochs[].samples",
    "samples_per_epoch": "samples_per_epoch",
    "steps x global batch": "步数 x 全局批次",
    "steps x batch size x replicas, inferred": "步数 x 批大小 x 副本数，推算所得",
    "counted the server as a worker": "把服务器也算作工作进程",
    "multiplied by the number of ranks, the server among them, what was already a total":
        "本已是总量，又乘以了包括服务器在内的进程数",
    "multiplied by the number of replicas what was already a total": "本已是总量，又乘以了副本数",
    "counted the samples of one replica only": "只计入了一个副本的样本",
    "throughput and time are not of the same work": "吞吐量和时间不是同一份工作的",
    "compute throughput as samples of all replicas / wall time, then run again":
        "按“所有副本的样本数 / 墙钟时间”计算吞吐量，然后重新运行",
    "fewer than two files tell how many samples an epoch consumes": "能说明每轮使用多少样本的文件不足两个",
    "{count} samples in an epoch of each of {runs} runs": "{runs} 个运行每轮都使用 {count} 个样本",
    "an epoch of {name} has {count} samples, one of {reference} {expected}: {ratio} times as many":
        "{name} 每轮有 {count} 个样本，{reference} 每轮有 {expected} 个：前者是后者的 {ratio} 倍",
    "corrected throughput {corrected} img/s": "更正后的吞吐量为 {corrected} img/s",
    "the data was cut into as many shares as there are ranks, and the server's was never trained on":
        "数据按进程总数切分，服务器的那一份从未用于训练",
    "the runs do not go through the same data in an epoch": "各运行在一轮中使用的数据不同",
    "cut the data into one share for each replica, and give all runs the same data set":
        "按副本数切分数据，并让所有运行使用同一数据集",
    "as the files have it, {name} is {claimed} than {baseline}; by the samples really consumed it is {corrected} "
    "({speed} against {reference} img/s)":
        "按文件所载，{name} 比 {baseline} {claimed}；按实际使用的样本计算则{corrected}"
        "（{speed} 对 {reference} img/s）",
    "a throughput that its own file refutes": "吞吐量被其自身的文件否定",
    "quote the corrected figures, or better, run again": "引用更正后的数字，最好重新运行",
    "the file holds no summary": "文件中没有汇总",
    "summary and epochs hold no figure in common": "汇总与各轮没有共同的数字",
    "{key} {said}, from the epochs {found}": "{key} 为 {said}，由各轮得出的却是 {found}",
    "the summary was computed from other figures": "汇总是由别的数字算出的",
    "trust the epochs; this analysis uses only them": "以各轮数字为准；本分析只使用它们",
    "{count} figures agree with the epochs": "{count} 个数字与各轮一致",
}

TIME = {
    "sum of phases": "各阶段之和",
    "step time x steps": "每步时间 x 步数",
    "{what} is not in the file": "文件中没有{what}",
    "{what} is {share} of the training time in epoch {epoch} (worst of {epochs})":
        "第 {epoch} 轮中{what}为训练时间的 {share}（{epochs} 轮中偏差最大的一轮）",
    "time outside any phase, or a timer that stopped before the device had finished":
        "有时间不属于任何阶段，或计时器在设备完成之前就已停止",
    "overlapping phases, or time counted twice": "阶段相互重叠，或时间被重复计入",
    "the step time leaves out part of the step, such as the wait for input, or is that of an asynchronous timer":
        "每步时间漏掉了一部分，例如等待输入的时间，或者来自异步计时器",
    "the step time is not of this epoch, or of fewer and longer steps": "每步时间不属于这一轮，或来自更少而更长的步",
    "do not read the time breakdown of this run": "不要采信该运行的时间分解",
    "a step of {step} ms has {inside} ms inside its communication timers; the rest is {ratio} times a whole step of "
    "{reference} for the same number of samples":
        "一步 {step} ms 中有 {inside} ms 在通信计时器之内；"
        "对相同的样本数，其余部分是 {reference} 整步时间的 {ratio} 倍",
    "communication timers that stopped before the device had finished, so that its time shows up elsewhere, or a wait "
    "for input outside the clock":
        "通信计时器在设备完成之前就已停止，时间落到了别处；或者存在计时之外的输入等待",
    "synchronise the device before stopping a timer, or use CUDA events": "停止计时前先同步设备，或使用 CUDA 事件",
    "start or end is not in the file as YYYY-MM-DD HH:MM:SS":
        "文件中没有 YYYY-MM-DD HH:MM:SS 格式的开始或结束时间",
    "the file holds no training time": "文件中没有训练时间",
    "{total} s of training between start and end, which are {lasted} s apart":
        "开始与结束相隔 {lasted} s，其间训练时间为 {total} s",
    "the training time is a sum over ranks, or start and end are of another run":
        "训练时间是各进程之和，或者开始和结束时间属于另一次运行",
    "measure the wall time of one rank": "请测量单个进程的墙钟时间",
    "data wait is not in the file": "文件中没有等待数据的时间",
    "data wait is {share} of the training time": "等待数据占训练时间的 {share}",
    "the replicas wait for batches, so a ranking would rank the disk, not the methods":
        "各副本都在等待批次，排名比较的将是磁盘而不是方法",
    "raise --workers, shrink the images or use a data set in memory": "增大 --workers、缩小图像，或使用内存中的数据集",
    "the file holds no times of single steps": "文件中没有单步时间",
    "{steps} steps are too few to tell a warm-up from noise": "{steps} 步太少，无法区分预热与噪声",
    "one level of step times in {steps} steps": "{steps} 步的单步时间处于同一水平",
    "steps 1 to {place} take {before} ms, those after it {after} ms (medians of {steps} steps)":
        "第 1 至 {place} 步每步 {before} ms，其后每步 {after} ms（共 {steps} 步，取中位数）",
    "a warm-up inside the measured part: kernels chosen or compiled, memory taken, caches cold":
        "计时部分内含有预热：选择或编译算子、申请内存、缓存未热",
    "make discarded steps before the clock starts": "在开始计时前先运行若干步并丢弃",
    "another load on the machine, a lower clock rate, or other data from there on":
        "从那里起机器上有其他负载、时钟频率降低，或数据不同",
    "run again on an idle machine and compare": "在空闲的机器上重新运行并比较",
    "the file does not tell each replica's own work": "文件没有说明每个副本自身的工作时间",
    "rank {rank} works {own} ms a step by itself, {ratio} times the median of the others ({others} ms)":
        "进程 {rank} 自身每步工作 {own} ms，是其他副本中位数（{others} ms）的 {ratio} 倍",
    "that rank's device is slower, shared or starved of data; the others wait for it":
        "该进程的设备较慢、被共用或得不到数据；其他副本都在等它",
    "look at what else runs there, or leave that device out": "查看那里还在运行什么，或不使用该设备",
    "each replica's own work: {times} ms a step": "各副本自身的工作时间：每步 {times} ms",
    "cores and threads are not in the file": "文件中没有核数和线程数",
    "{ranks} ranks x {threads} threads on {cores} cores": "{ranks} 个进程 x {threads} 个线程，共 {cores} 个核",
    "ranks take the cores from each other, and a wait for a core looks like communication":
        "各进程争用处理器核，等待处理器核的时间看上去就像通信",
    "set OMP_NUM_THREADS to {threads}, or start fewer ranks": "将 OMP_NUM_THREADS 设为 {threads}，或减少进程数",
    "start fewer ranks": "减少进程数",
}

BANDWIDTH = {
    "the size of the gradients is not in the file; give it with --gradient-mb":
        "文件中没有梯度大小；请用 --gradient-mb 给出",
    "a timer that stopped before the device had moved the data": "计时器在设备搬完数据之前就已停止",
    "{phases}: {moved} MB ({source}) in {time} ms = {each} GB/s; ceiling {limit} GB/s ({limit_source})":
        "{phases}：{moved} MB（{source}）用时 {time} ms = {each} GB/s；上限 {limit} GB/s（{limit_source}）",
    "{phases}: {count} x {moved} MB ({source}) in {time} ms = {total} GB/s through one server, {each} GB/s for each "
    "worker; ceiling {limit} GB/s ({limit_source})":
        "{phases}：{count} x {moved} MB（{source}）用时 {time} ms = 经一个服务器 {total} GB/s，"
        "每个工作进程 {each} GB/s；上限 {limit} GB/s（{limit_source}）",
    "{phases}: {count} x {moved} MB ({source}) in {time} ms = {total} GB/s through each of {servers} servers, {each} "
    "GB/s for each worker; ceiling {limit} GB/s ({limit_source})":
        "{phases}：{count} x {moved} MB（{source}）用时 {time} ms = 经 {servers} 个服务器各 {total} GB/s，"
        "每个工作进程 {each} GB/s；上限 {limit} GB/s（{limit_source}）",
    "counted": "实际计数",
    "from the file": "文件所载",
    "from --gradient-mb": "由 --gradient-mb 给出",
    "float32 gradients of {model}": "{model} 的 float32 梯度",
    "given with --link-gbs": "由 --link-gbs 给出",
    "memory copies on a large server: half of eight DDR4-3200 channels":
        "大型服务器的内存复制：八通道 DDR4-3200 的一半",
    "a network card of 400 Gbit/s": "400 Gbit/s 网卡",
    "PCIe 5.0 x16, 16 lanes of 32 GT/s": "PCIe 5.0 x16，16 条 32 GT/s 通道",
    "PCIe 4.0 x16, 16 lanes of 16 GT/s; if this machine has a faster link, state it with --link-gbs":
        "PCIe 4.0 x16，16 条 16 GT/s 通道；若本机有更快的链路，请用 --link-gbs 说明",
    "NVLink {version} of {device}, one direction": "{device} 的 NVLink {version}，单方向",
}

RUN = {
    "epochs: {count}": "轮数：{count}",
    "{file} holds no epoch": "{file} 中没有任何一轮",
    "the run ended early": "运行提前结束",
    "run it again": "重新运行",
    "the run failed": "运行失败",
    "remove the cause and run it again": "排除原因后重新运行",
    "the figures of {name} are of another run, {file}": "{name} 的数字来自另一次运行 {file}",
    "{key} {value} in epoch {epoch}": "第 {epoch} 轮的 {key} 为 {value}",
    "a figure outside its range": "数值超出其范围",
    "look for a wrong unit or a counter that ran over": "检查单位是否有误、计数器是否溢出",
    "best validation accuracy {value}": "最佳验证准确率 {value}",
    "a fraction where per cent are expected, or a model that has learnt nothing":
        "应为百分数却写成了小数，或者模型什么也没学到",
    "write accuracies in per cent": "准确率请写成百分数",
    "every figure is finite and in its range": "所有数值均为有限值并在其范围之内",
    "before step 1": "第 1 步之前",
    "after epoch {epoch}": "第 {epoch} 轮之后",
    "the file holds no fingerprints of the parameters": "文件中没有参数指纹",
    "{different} different sets of parameters on {replicas} replicas {stage}":
        "{stage}，{replicas} 个副本上有 {different} 组不同的参数",
    "the replicas do not train one model": "各副本训练的不是同一个模型",
    "broadcast the start, and apply the same averaged gradient everywhere":
        "广播初始参数，并在各处应用相同的平均梯度",
    "parameters equal on all replicas, checked {count} times": "所有副本的参数相同，共检查 {count} 次",
    "epoch {epoch}: {updates} updates in {steps} steps": "第 {epoch} 轮：{steps} 步中更新了 {updates} 次",
    "the server updates for each push instead of each global batch":
        "服务器每收到一次推送就更新，而不是每个全局批次更新一次",
    "average the gradients of all workers, then update once": "先平均所有工作进程的梯度，再更新一次",
    "one update a step": "每步更新一次",
    "an asynchronous run without a record of its staleness": "异步运行，却没有陈旧度记录",
    "how old the gradients were that it applied is not known": "无从得知它所应用的梯度有多陈旧",
    "count the updates between each pull and the push that answers it": "统计每次拉取与相应推送之间的更新次数",
    "gradients are {mean} updates old on average, {most} at most, over {updates} updates":
        "在 {updates} 次更新中，梯度平均滞后 {mean} 次更新，最多 {most} 次",
    "epoch {epoch} after step {step}": "第 {epoch} 轮第 {step} 步之后",
    "taken up from a checkpoint in {places}": "从检查点继续：{places}",
    "its parts ran in different environments": "它的各部分运行在不同的环境中",
    "run it again in one environment": "请在同一环境中重新运行",
    "the run has no such place": "该运行没有这样的位置",
    "the file was put together from several runs; run it again": "文件由多次运行拼凑而成；请重新运行",
    "the run was interrupted; its times are sums over several processes": "运行曾中断；其时间是多个进程之和",
    "where speed matters, run it again undisturbed": "若看重速度，请不受打扰地重新运行一次",
    "the file does not tell how many samples it evaluated": "文件没有说明评估了多少样本",
    "{evaluated} of {total} validation samples evaluated ({share})":
        "评估了 {evaluated} 个样本，验证集共 {total} 个（{share}）",
    "a sampler that pads: some samples count twice": "采样器做了填充：部分样本被计入两次",
    "only some replicas' shares were counted, or a last batch was dropped":
        "只计入了部分副本的份额，或丢弃了最后一个批次",
    "evaluate every sample once, and add the replicas' sums": "每个样本只评估一次，并对各副本求和",
}

COMPARABLE = {
    "the runs trained differently": "各运行的训练方式不同",
    "run all methods with the same flags": "用相同的参数运行所有方法",
    "no recipe in the file of {names}": "{names} 的文件中没有训练配置",
    "recipe, data set and model are equal in {count} runs": "{count} 个运行的训练配置、数据集和模型相同",
    "a difference in speed may be one of hardware or versions": "速度差异可能来自硬件或版本",
    "run all methods on the same machine in one go": "在同一台机器上一次性运行所有方法",
    "no environment in the file of {names}": "{names} 的文件中没有运行环境",
    "machine, versions and ranks are equal in {count} runs": "{count} 个运行的机器、版本和进程数相同",
    "the runs made other updates, so neither speed nor a curve per epoch compares":
        "各运行的更新不同，因此速度和按轮绘制的曲线都不可比较",
    "give all runs the same --global-batch-size and --epochs": "让所有运行使用相同的 --global-batch-size 和 --epochs",
    "global batch or steps unknown for {names}": "{names} 的全局批次或步数未知",
    "equal in {count} runs: {facts}": "{count} 个运行相同：{facts}",
    "the runs are not evaluated on the same data": "各运行不是在相同的数据上评估的",
    "do not compare their accuracies; evaluate the saved models alike": "不要比较其准确率；请以相同方式评估保存的模型",
    "the runs did not start from the same parameters": "各运行的初始参数不同",
    "use the same --seed, --model and --weights": "使用相同的 --seed、--model 和 --weights",
    "{count} runs started from the same parameters": "{count} 个运行从相同的参数开始",
    "fewer than two files hold a fingerprint of their start, or a first loss":
        "含有起点指纹或首步损失的文件不足两个",
    "first losses {losses}": "首步损失 {losses}",
    "an untrained network has about ln {classes} = {chance}": "未经训练的网络约为 ln {classes} = {chance}",
    "the runs did not start from the same parameters: some were trained before":
        "各运行的初始参数不同：有的事先训练过",
    "so equal weights are neither shown nor refuted": "因此初始权重是否相同既未证实也未否定",
}

TRAJECTORY = {
    "fewer than two files hold losses per step": "含有逐步损失的文件不足两个",
    "largest loss difference from {name}: {largest} at step {step} of {steps}; {early} in the first {count} steps, "
    "{end} between the means of the last {tail}":
        "与 {name} 的最大损失差：第 {step} 步（共 {steps} 步）为 {largest}；前 {count} 步内为 {early}，"
        "最后 {tail} 步均值之差为 {end}",
    "rounding explains {rounding} at step 1, where it is {first}": "第 1 步舍入误差可解释 {rounding}，实际差为 {first}",
    "worst stretch {persistent}, noise of batches {noise}": "偏差最大的一段为 {persistent}，批次噪声为 {noise}",
    "noise of the seed {noise}": "随机种子的噪声：{noise}",
    "rounding, amplified by training: same early steps, same course, same end":
        "舍入误差被训练放大：开头、走势和结尾都相同",
    "the recipes differ, so the curves need not agree": "训练配置不同，曲线不必一致",
    "an asynchronous method makes other updates; it is judged by where it ends":
        "异步方法的更新本就不同；以最终结果评判",
    "another update rule, or a fault: whether this method is synchronous is not known":
        "更新规则不同，或存在错误：不知道该方法是否同步",
    "more than rounding, but of the size that another seed makes": "大于舍入误差，但与更换随机种子造成的差异相当",
    "the numbers of replicas differ: BatchNorm statistics are per replica": "副本数不同：BatchNorm 的统计量按副本计算",
    "compare a model without BatchNorm to tell this from a fault": "改用不含 BatchNorm 的模型比较，以区别于错误",
    "no more than the noise of single batches; whether both saw the same ones is not known":
        "不超过单个批次的噪声；不知道两者所用的批次是否相同",
    "compare the parameters before step 1, then the averaged gradient of step 1, with {name}'s":
        "先比较第 1 步之前的参数，再比较第 1 步的平均梯度，均以 {name} 为参照",
}

CAUSES = {
    "the runs do not compute the same updates": "各运行计算的更新不同",
    "most likely first: {causes}": "按可能性从大到小：{causes}",
    "most likely: {cause}": "最可能的是：{cause}",
    "({place}) {cause}: {reasons}": "（{place}）{cause}：{reasons}",
    "step 1 differs already, by {share} of the loss": "第 1 步就已不同，差为损失的 {share}",
    "step 1 differs, by {share} of the loss, though the weights are the same":
        "权重相同，第 1 步却不同，差为损失的 {share}",
    "step 1 agrees and step {step} does not": "第 1 步一致而第 {step} 步不一致",
    "step 1 differs, and the curves then keep together": "第 1 步不同，其后两条曲线保持一致",
    "the replicas never got the same initial weights": "各副本从未得到相同的初始权重",
    "the fingerprints of the replicas differ": "各副本的指纹不同",
    "both runs begin near ln {classes} = {chance}, as untrained networks do, but this one ends {end} higher":
        "两者都像未经训练的网络那样从 ln {classes} = {chance} 附近开始，但该运行结束时高出 {end}",
    "another start than the reference: seed, pretrained weights or model": "起点与参照不同：随机种子、预训练权重或模型",
    "the fingerprints of the two starts differ": "两者起点的指纹不同",
    "the gradients are summed, not averaged, as if the learning rate were multiplied by the number of replicas":
        "梯度被求和而不是求平均，相当于学习率乘以了副本数",
    "the loss then falls {pace} times as fast with {count} replicas":
        "其后损失的下降速度是参照的 {pace} 倍，副本数为 {count}",
    "it is {unrest} times as unsteady": "其波动是参照的 {unrest} 倍",
    "the loss rises at once": "损失立即上升",
    "the gradients are divided twice, or only one replica's are applied": "梯度被除了两次，或只应用了一个副本的梯度",
    "it ends {end} higher": "结束时高出 {end}",
    "shares of unequal size are averaged as if they were equal": "大小不等的份额被当作相等来平均",
    "the runs agree until the short last batch of epoch 1, and not after it":
        "在第 1 轮较短的最后一个批次之前一致，其后不一致",
    "a global batch of {batch} does not divide by {count} replicas": "全局批次 {batch} 不能被 {count} 个副本整除",
    "the difference stays within the noise of batches": "差异始终在批次噪声之内",
    "another order of the data, or other transforms": "数据顺序或变换不同",
    "the ups and downs of the two curves hardly agree (correlation {correlation})":
        "两条曲线的起伏几乎不相符（相关系数 {correlation}）",
    "another learning-rate schedule, weight decay or momentum": "学习率调度、权重衰减或动量不同",
    "the curves part only at step {step}": "曲线到第 {step} 步才分开",
    "that is where an epoch begins": "那里正是一轮的开始",
}

AUDIT: dict[str, str] = CHECKS | SAMPLES | TIME | BANDWIDTH | RUN | COMPARABLE | TRAJECTORY | CAUSES
