"""The shipped configurations; `--gin_file demo.gin` finds them from anywhere."""
