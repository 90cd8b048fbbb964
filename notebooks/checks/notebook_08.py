"""Check of notebook 08, what we reproduced."""

from collections.abc import Callable, Sequence

from checks.base import Hint, check, row, tell


@check
def check_stream(measure: Callable[[], Sequence[float]]) -> str:
    """Judge `measure()`: the variance of a fresh stream after each of nine blocks.

    Weights are random, so the growth is judged by its size, not by its digits: over 12
    seeds the last variance is 2.2 to 5.9 times the first in training mode, and 14 times
    or more in evaluation mode. A ReLU in the stream leaves 0.8 after the first block.
    The first variance is 4.4 at most over 30 seeds; with stage 3 it is 5.9 or more.
    """
    found = row(measure(), "return nine numbers in a list, not {}.")
    if len(found) != 9:
        raise Hint(f"stage 1 of resnet56 has nine blocks, and here are {len(found)}.")
    first, last = found[0].item(), found[-1].item()
    told = f"from {first:.2f} to {last:.2f}"
    tell(
        {
            f"{told}: a variance is above 0.": not found.min() > 0,
            f"{told}: that hardly changes. Is it what the branches add? Take the "
            "blocks' outputs, layer1.0 to layer1.8.": first < 30
            and 0.5 * first < last < 1.3 * first,
            f"{told}: it grows, so is the first block first?": last < first < 30,
            f"{told}: in evaluation mode BN uses the statistics of a net that has seen "
            "nothing, 0 and 1. Call net.train() first.": last > 9 * first,
            f"{told}: so large a number is a norm or a sum, or the pictures are "
            "not normalised. The variance is asked, .var().": last > 30,
            f"{told}: this stream has a ReLU in it. Is the net in the order of "
            "2016?": first < 1.1,
            f"{told}: are these standard deviations? Take the square, or .var().": last
            < 6,
            f"{told}: it is loud from the first block on. Are these the blocks of "
            "layer1?": first > 5,
        }
    )
    step = (last - first) / 8
    return (
        f"Right: {told}, about {step:.1f} more with every block. BN reads a loud "
        "stream as it reads a quiet one, so each branch adds the same: the more there "
        "is, the smaller its share."
    )
