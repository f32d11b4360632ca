"""stub"""


def run(options):
    return {}
