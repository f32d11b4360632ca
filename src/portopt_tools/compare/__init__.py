"""`portopt compare`: train one model on real data with every array library, and compare the bits after every step.

`comparison.py` is the whole in a page; the rest is what it calls. Nothing here is imported by `import portopt`.
"""
