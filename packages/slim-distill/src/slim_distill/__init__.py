"""slim-distill: knowledge distillation. This version registers nothing yet; the README says what is coming."""
