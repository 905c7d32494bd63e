"""What layers are called: names that recipes can address, made of what exporters write."""

import re

__all__ = ["clean", "layer_name", "module_path"]

# Names that an exporter made up: they say nothing of the layer.
_MADE = re.compile(r"(onnx::\w+|_?v_?\d+|val_\d+|\d+|.*/?const_fold_opt__\d+|p2o\..*|auto_\d+_.*|tmp_\d+|.*_quantized)")
_ROLE = re.compile(
    r"[._]?(weight|kernel|w|W|filter|Conv2D/ReadVariableOp|MatMul/ReadVariableOp|ReadVariableOp)[._]?\d*$"
)


def clean(name: str) -> str:
    """Return a name with dots between its parts and without the output number that TensorFlow appends.

    Examples
    --------
    >>> from pqnet_converters.core.naming import clean
    >>> clean("/layer.0/attention/query/MatMul"), clean("stage0/unit1/conv2:0")
    ('layer.0.attention.query.MatMul', 'stage0.unit1.conv2')
    """
    return re.sub(r":0$", "", name).strip("/").replace("/", ".")


def module_path(node: str, op: str) -> str:
    """Return the module of a node that is called after module and operation; empty if it is not.

    Examples
    --------
    >>> from pqnet_converters.core.naming import module_path
    >>> module_path("/model.0/conv/Conv", "Conv"), module_path("Conv_12", "Conv")
    ('model.0.conv', '')
    """
    head, _, last = clean(node).rpartition(".")
    return head if head and re.fullmatch(rf"{re.escape(op)}(_\d+)?|Conv2D|BiasAdd", last) else ""


def layer_name(weight: str, node: str, op: str) -> str:
    """Return the name of a layer: that of its weight without the word weight, else that of its node's module.

    Examples
    --------
    >>> from pqnet_converters.core.naming import layer_name
    >>> layer_name("model.0.conv.weight", "/model.0/conv/Conv", "Conv")
    'model.0.conv'
    >>> layer_name("onnx::MatMul_93", "/layer.0/query/MatMul", "MatMul"), layer_name("onnx::Conv_5", "", "Conv")
    ('layer.0.query', 'Conv')
    """
    if weight and not _MADE.fullmatch(weight):
        short = _ROLE.sub("", clean(weight))
        if short:
            return short
    return module_path(node, op) or (clean(node) if node else op)
