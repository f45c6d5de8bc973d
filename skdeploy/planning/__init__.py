"""The cost of a graph on a device, before an engine is built: ``report.plan`` is the entry.

plain.py reads the graph, layers.py fuses it, roofline.py costs it, devices.py has the devices; tensor_cores.py, dla.py and
recommend.py judge it. benchmarks/plan_self_test.py holds the same model to a measurement.
"""
