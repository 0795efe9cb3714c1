"""Our INT8 beside that of other engines: same weights, same calibration samples, same threads, turn by turn in one run.

`python -m bench.peers` (or `make peers`) writes out/peers.md and out/peers.json. What is compared, and what is to be
reached, are tables in `contenders`; nothing else names an engine.

    contenders      the engines, what each runs, how each is capped, the goals
    models          a row -> what every engine runs, built once and kept: ONNX, quantized models, data
    export          the jobs that make ONNX graphs and generated input of our FP32 models
    recurrent       legacy recurrent programs as ONNX graphs, and the decoding that ONNX has no op for
    onnx_inputs     what ONNX graphs are fed, and what becomes of their outputs
    protocol        a worker is a process that holds one model: load, turn, outputs, quit, as JSON lines
    *_engine        what a worker runs: load(...) -> Session; build_int8(...), a job that quantizes
    compare         workers in turns; accuracy; a row's results
    results         results -> tables and verdicts
"""
