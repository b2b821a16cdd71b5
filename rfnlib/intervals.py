from rfnlib.transfer import Estimate, Influence, average, interval, over_seeds, share  # noqa: F401  (shim, not kept)
