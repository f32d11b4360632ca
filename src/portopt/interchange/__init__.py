"""Other frameworks: their optimizers with the methods of portopt, and translation to and from them."""
