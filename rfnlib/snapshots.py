import hashlib, json
from rfnlib.training import Snapshot, DamagedSnapshot, _opened, _read  # noqa: F401  (shim, not kept)
def weights_digest(state):
    h = hashlib.sha256()
    for k in sorted(state):
        v = state[k].detach().cpu().contiguous()
        h.update(f"{k} {v.dtype} {tuple(v.shape)}".encode()); h.update(v.numpy().tobytes())
    return h.hexdigest()[:16]
def read_checked(path):
    t=_read(path)
    with _opened(path) as f: return t, json.loads(f.metadata()["rfnlib"])
