"""The table of a bench/peer run. A figure is the median of its undisturbed samples; the peer counts with the best
of its variants."""

import statistics

LOWER_IS_BETTER = ("start to first token", "memory", "idle")
GOALS = {  # metric -> what is owed to the peer, as a ratio (of rates: ours / theirs; of costs: theirs / ours)
    "in process: decode 128, tok/s": 1.0,
    "in process: prefill 512, tok/s": 1.0,
    "server: decode of 1 stream, tok/s": 1.0,
    "server: prefill of 512, tok/s": 1.0,
    "server: output of 16 clients, tok/s": 3.0,
    "memory under 16 clients: peak_mb": 1.0,
}


def median(samples, disturbed_share):
    """(median, samples used, samples left out). When every sample was disturbed all are used, and none is left out."""
    clean = [s["value"] for s in samples if s["disturbed"] <= disturbed_share]
    used = clean or [s["value"] for s in samples]
    return statistics.median(used), len(used), len(samples) - len(used)


def number(x):
    return f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}" if abs(x) < 100 else f"{x:.0f}"


def row(metric, by_contender, peer_names, share):
    medians = {c: median(s, share) for c, s in by_contender.items()}
    cost = any(word in metric for word in LOWER_IS_BETTER)
    peers = {c: m for c, m in medians.items() if c.startswith("llama")}
    cells = [metric]
    if not peers:
        value, used, out = medians["machine"]
        return cells + [""] * len(peer_names) + [number(value), "", f"{used}" + (f" (-{out})" if out else "")]
    best = (min if cost else max)(peers, key=lambda c: peers[c][0])
    cells += [number(peers[c][0]) + ("*" if c == best and len(peers) > 1 else "") if c in peers else ""
              for c in peer_names]
    ratio, ours = "", ""
    if "choir" in medians:
        ours = number(medians["choir"][0])
        a, b = medians["choir"][0], peers[best][0]
        value = (b / a if a else float("inf")) if cost else (a / b if b else float("inf"))
        ratio = "-" if value == float("inf") else f"**{value:.2f}**"
        if metric in GOALS:
            ratio += f" (goal {GOALS[metric]:.1f})"
    used = sum(m[1] for m in medians.values())
    out = sum(m[2] for m in medians.values())
    return cells + [ours, ratio, f"{used}" + (f" (-{out})" if out else "")]


def markdown(result, share):
    metrics = {}
    for entry in result["samples"]:
        metrics.setdefault(entry["metric"], {})[entry["contender"]] = entry["samples"]
    peer_names = list(dict.fromkeys(c for by in metrics.values() for c in by if c.startswith("llama")))
    lines = [
        f"{result['date']}, {result['cpu']}, Linux {result['kernel']}; {result['threads']} threads, {result['model']}; peer: {result['peer']}.",
        f"Command: `{result['command']}`. Medians over {result['rounds']} interleaved rounds; samples in which foreign processes took more "
        f"than {share:.0%} of a core are left out; `*` marks the best variant of the peer, which the ratio is against "
        "(of costs the ratio is theirs / ours, so more than 1 is better everywhere).",
        "",
        "| | " + " | ".join(peer_names + ["choir", "ratio", "samples"]) + " |",
        "|---" + "|--:" * (len(peer_names) + 3) + "|",
    ]
    lines += ["| " + " | ".join(row(m, by, peer_names, share)) + " |" for m, by in metrics.items()]
    return "\n".join(lines)
