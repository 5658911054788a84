"""Everything that arrives from devices: checked in order, assembled, recorded, answered."""
