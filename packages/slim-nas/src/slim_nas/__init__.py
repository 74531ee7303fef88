"""slim-nas: neural architecture search. This version registers nothing yet; the README says what is coming."""
