from nbhelpers.zoo import measure

SMALL = {"N_SEQUENCES": 2, "N_VALIDATION": 6, "N_LONG": 2, "N_REPEATED": 2}


def shrink(patch):
    for name, value in SMALL.items():
        patch.setattr(measure, name, value)
