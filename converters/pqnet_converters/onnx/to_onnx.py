def to_onnx(model):
    raise NotImplementedError
