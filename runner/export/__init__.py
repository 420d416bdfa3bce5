"""A finished model in the formats of other programs: `python -m runner.export`.

`program` is what is exported, `metadata` what stands beside the numbers, `check` compares the result with PyTorch,
`example` says what `sihlai predict` says, and an `excerpt` of it, for the model's own tasks, is written beside an ONNX
file. onnx and onnxruntime are an extra (`sihlai[export]`); a runner needs neither.
"""
