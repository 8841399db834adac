"""From a command line to a run: register groups, compose, validate, check the machine, resolve.

register.register()                   # schemas, groups and resolvers, for Hydra
config = compose.from_hydra(cfg)      # composed and validated
run = resolve.resolve(config, site)   # every `auto` decided once
"""
