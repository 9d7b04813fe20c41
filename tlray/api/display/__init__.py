"""What Python users see of a result: typed objects, tables and small pictures in notebooks."""
