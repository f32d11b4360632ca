"""Keras 3 and portopt: Keras's own optimizers inside portopt."""


def __getattr__(name: str) -> object:
    if name == "native":
        from portopt_keras._native import native

        return native
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
