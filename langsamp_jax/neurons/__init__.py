"""What single neurons do: for which language, and for which concept."""
