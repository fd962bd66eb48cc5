"""From a configuration to a placement: what optimizers share, and pipelines written as text.

* `building`: usable stages, a pipeline's worth, and the placement of chosen pipelines
* `refusal`: why no pipeline could be made
* `spares`: instances that are kept beside the pipelines
* `written`: pipelines in the form `g6.12xlarge:40,g5.12xlarge/2:40`
"""
