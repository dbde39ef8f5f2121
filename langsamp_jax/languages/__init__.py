"""Language-scripts: codes and table rows, published lists, typology, aligned text."""
