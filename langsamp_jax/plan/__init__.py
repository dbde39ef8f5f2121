"""`langsamp plan`: the train step compiled for machines that are not there."""
