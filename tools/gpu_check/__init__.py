"""Proves on a machine with a GPU, in minutes, what tests without one cannot: `tools/gpu-check`.

* `parts/`: what is checked, a module a part; `catalog`: their order and their time limits
* `harness`: a process for each part; `part`: that process; `rows`: what a part finds
* `report`: the table, the JSON and the page; `machine`: where it ran
* `model`: random models; `holders`, `engines`: processes that parts start and kill
* `pack`: the folder that a bare machine needs; `fatbin`: libraries with one card's code only
"""
