"""Value, gradient and Hessian of a function from one trace."""

import jax


def three_orders(function, theta):
    """In `theta`, an array; compiled as one program."""

    def slope(theta):
        value, gradient = jax.value_and_grad(function)(theta)
        return gradient, (value, gradient)

    def orders(theta):
        hessian, below = jax.jacfwd(slope, has_aux=True)(theta)
        return *below, hessian

    return jax.jit(orders)(theta)
