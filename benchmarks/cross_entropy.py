"""Peak memory and time of the loss: all logits at once, labelled positions at once, labelled positions in chunks.

    python benchmarks/cross_entropy.py [--positions 4096] [--width 512] [--vocab 151936]

Every way runs in a process of its own, which reports the most memory it had beyond what it began with.
"""

import argparse
import resource
import subprocess
import sys
import time

WAYS = ("all positions", "labelled positions", "labelled positions in chunks")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--positions", type=int, default=2048, help="positions of the batch")
    parser.add_argument("--labelled", type=float, default=0.5, help="share of them with a label")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--chunk-logits", type=int, default=2**25)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options)
        return
    labelled = int(options.positions * options.labelled)
    print(
        f"{options.positions} positions, {labelled} of them labelled, width {options.width}, "
        f"vocabulary {options.vocab}, float32, chunks of {options.chunk_logits // options.vocab} positions.\n"
        f"Expected: logits of {labelled} positions are {4e-6 * labelled * options.vocab:.0f} MB, held about three "
        f"times (logits, log-softmax, gradient); the head's gradient is "
        f"{4e-6 * options.width * options.vocab:.0f} MB.\n"
    )
    print("| logits of | peak memory MB | forward and backward s | loss |\n|---|---|---|---|")
    for way in WAYS:
        line = subprocess.run(
            [sys.executable, *sys.argv, "--way", way], capture_output=True, text=True, check=True
        ).stdout
        print(line, end="", flush=True)


def measure(options: argparse.Namespace) -> None:
    import torch
    from torch.nn import functional

    from infinity_mm.model.cross_entropy import token_losses

    torch.manual_seed(0)
    head = torch.nn.Linear(options.width, options.vocab, bias=False)
    hidden = torch.randn(options.positions, options.width, requires_grad=True)
    labels = torch.randint(0, options.vocab, (options.positions,))
    labels[int(options.positions * options.labelled) :] = -100
    has_label = labels != -100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if options.way == "all positions":
        loss = functional.cross_entropy(head(hidden).float(), labels)
    elif options.way == "labelled positions":
        loss = functional.cross_entropy(head(hidden[has_label]).float(), labels[has_label])
    else:
        loss = token_losses(
            head,
            hidden[has_label],
            labels[has_label],
            vocab_size=options.vocab,
            chunk_logits=options.chunk_logits,
        ).mean()
    loss.backward()
    seconds = time.perf_counter() - start
    peak_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"| {options.way} | {peak_mb:.0f} | {seconds:.1f} | {float(loss.detach()):.5f} |")


if __name__ == "__main__":
    main()
