"""Random operations on trees, arrays and optimizers, compared with the same operations through the interpreter on copies.

An episode makes two worlds from one seed: parameters, gradients and a state that are equal in everything but their memory. The
one steps as users do, with kernels and plans; the other, the model, operation by operation, without either. Both are changed
and stepped in the same random ways, and after each operation all bytes, structures, scalars and errors must be equal. A step
that is refused must have changed nothing. Episodes with threads step several worlds at once by one optimizer.
"""
