"""Networks at int8, on CPUs by onnxruntime: calibrated when a table is made, computed alike by all that extend or search it."""
