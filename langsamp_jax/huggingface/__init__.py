"""XLM-R and its kin in Hugging Face's form: in, out, and vocabularies that grow."""
