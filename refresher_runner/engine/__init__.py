"""The pipeline that every task runs through."""
