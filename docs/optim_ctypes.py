#!/usr/bin/env python3
"""Shoal's optimizers from Python, with ctypes alone: AdamW on an array of this process.

    python3 docs/optim_ctypes.py build/lib/libshoal.so

Trains 1,003 numbers for 50 steps, on two threads, with fp32 states, and compares them with the same
steps computed in double below; then once more with 8-bit states.  Exit code 1 if they disagree.
The structs are those of runtime/shoal.h, member by member.
"""

import ctypes as c
import math
import sys


class Params(c.Structure):
    _fields_ = [
        ("size", c.c_size_t), ("rule", c.c_char_p), ("state", c.c_char_p), ("master", c.c_char_p),
        ("n_elements", c.c_int64), ("rows", c.c_int64), ("cols", c.c_int64), ("role", c.c_char_p),
        ("heads", c.c_int), ("kv_heads", c.c_int), ("head_size", c.c_int), ("key", c.c_uint64),
        ("threads", c.c_void_p), ("beta1", c.c_double), ("beta2", c.c_double), ("eps", c.c_double),
        ("weight_decay", c.c_double), ("momentum", c.c_double), ("beta3", c.c_double),
        ("alpha", c.c_double), ("slow_warmup_steps", c.c_int64), ("gamma", c.c_double),
        ("clip_threshold", c.c_double), ("nesterov", c.c_int), ("scale_parameter", c.c_int),
        ("relative_step", c.c_int), ("cautious", c.c_int), ("tensor_clip", c.c_int),
    ]


class Update(c.Structure):
    _fields_ = [
        ("size", c.c_size_t), ("step", c.c_int64), ("lr", c.c_double), ("grad_scale", c.c_float),
        ("grad_is_bf16", c.c_int), ("grad_squares", c.c_double), ("seed", c.c_uint64),
        ("grad", c.c_void_p), ("master", c.c_void_p), ("param", c.c_void_p),
        ("states", c.POINTER(c.c_void_p)), ("scratch", c.c_void_p),
        ("average_share", c.c_double),
    ]


def load(path):
    lib = c.CDLL(path)
    lib.shoal_last_error.restype = c.c_char_p
    lib.shoal_optim_state_name.restype = c.c_char_p
    for name in ("state_bytes", "master_bytes", "scratch_bytes"):
        getattr(lib, "shoal_optim_" + name).restype = c.c_size_t
    return lib


class Optimizer:
    """One tensor's optimizer with the memory it needs."""

    def __init__(self, lib, threads, n_elements, **params):
        self.lib, self.handle = lib, c.c_void_p()
        self.check(lib.shoal_optim_create(
            c.byref(Params(size=c.sizeof(Params), n_elements=n_elements, threads=threads, **params)),
            c.byref(self.handle)))
        count = lib.shoal_optim_state_count(self.handle)
        self.states = {
            lib.shoal_optim_state_name(self.handle, i).decode():
                c.create_string_buffer(lib.shoal_optim_state_bytes(self.handle, i))
            for i in range(count)}
        self.pointers = (c.c_void_p * count)(*map(c.addressof, self.states.values()))
        self.scratch = c.create_string_buffer(lib.shoal_optim_scratch_bytes(self.handle) + 1)

    def check(self, status):
        if status != 0:
            raise RuntimeError(self.lib.shoal_last_error().decode())

    def step(self, step, lr, grad, master):
        self.check(self.lib.shoal_optim_step(self.handle, c.byref(Update(
            size=c.sizeof(Update), step=step, lr=lr, grad=c.addressof(grad),
            master=c.addressof(master), states=self.pointers, scratch=c.addressof(self.scratch)))))

    def close(self):
        self.lib.shoal_optim_destroy(self.handle)


N, STEPS, LR, BETA1, BETA2, EPS, DECAY = 1003, 50, 1e-2, 0.9, 0.95, 1e-8, 0.1


def gradient(step):
    return (c.c_float * N)(*(math.sin(0.7 * i + 1.3 * step) for i in range(N)))


def train(optimizer):
    weights = (c.c_float * N)(*(math.cos(i) for i in range(N)))
    for step in range(1, STEPS + 1):
        optimizer.step(step, LR, gradient(step), weights)
    return list(weights)


def train_in_double():
    p = list((c.c_float * N)(*(math.cos(i) for i in range(N))))
    m, v = [0.0] * N, [0.0] * N
    for step in range(1, STEPS + 1):
        for i, g in enumerate(gradient(step)):
            m[i] = BETA1 * m[i] + (1 - BETA1) * g
            v[i] = BETA2 * v[i] + (1 - BETA2) * g * g
            m_hat, v_hat = m[i] / (1 - BETA1**step), v[i] / (1 - BETA2**step)
            p[i] = p[i] * (1 - LR * DECAY) - LR * m_hat / (math.sqrt(v_hat) + EPS)
    return p


def main():
    lib = load(sys.argv[1])
    threads = c.c_void_p()
    if lib.shoal_threads_create(2, c.byref(threads)) != 0:
        raise RuntimeError(lib.shoal_last_error().decode())
    numbers = dict(beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=DECAY)
    want = train_in_double()

    exact = Optimizer(lib, threads, N, rule=b"adamw", **numbers)
    got = train(exact)
    # Half ulps of fp32 per step: 3 of the weight, 260 of the learning rate (tests/tolerance.h).
    worst = max(abs(g - w) / (STEPS * 2**-24 * (3 * abs(w) + 260 * LR)) for g, w in zip(got, want))
    print(f"fp32 states {list(exact.states)}: {worst:.3f} of the allowed error")

    # Moments to 8 bits, one scale per 32: still the same path but for some percent.
    coded = Optimizer(lib, threads, N, rule=b"adamw", state=b"int8", **numbers)
    n_bytes = sum(c.sizeof(s) for s in coded.states.values())
    got = train(coded)
    way = math.sqrt(sum((math.cos(i) - w)**2 for i, w in enumerate(want)))
    off = math.sqrt(sum((g - w)**2 for g, w in zip(got, want))) / way
    print(f"int8 states {list(coded.states)}, {n_bytes / N:.2f} bytes per element: {off:.4f} off")

    refused = ""
    try:
        Optimizer(lib, threads, N, rule=b"adamv")
    except RuntimeError as error:
        refused = str(error)
    print(refused)
    exact.close()
    coded.close()
    lib.shoal_threads_destroy(threads)
    return 0 if worst <= 1 and off < 0.05 and "adamv" in refused else 1


if __name__ == "__main__":
    sys.exit(main())
