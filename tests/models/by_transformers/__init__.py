"""transformers' own tests of models, run on the students' classes."""
