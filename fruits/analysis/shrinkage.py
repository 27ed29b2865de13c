"""How far the covariance of a sample is to be trusted."""


def oracle_shrinkage(trace: float, squares: float, d: int, n: int) -> float:
    """The share ``s`` of the identity, 0 to 1, in the shrunk covariance ``(1 - s) C + s trace(C)/d I`` of ``n`` rows.

    Oracle approximating shrinkage, which needs no row (Chen, Wiesel, Eldar & Hero 2010, equation 23). The rule of
    Ledoit and Wolf needs fourth moments. 1 where the covariance is a multiple of the identity, or zero.

    Args:
        trace: Of the covariance: the sum of its eigenvalues.
        squares: Sum of the squares of its numbers, which is that of its eigenvalues.
        d: Features.
        n: Rows, less the means that were taken from them; at least 1.
    """
    spread = (n + 1 - 2 / d) * (squares - trace**2 / d)
    return min(1.0, ((1 - 2 / d) * squares + trace**2) / spread) if spread > 0 else 1.0
