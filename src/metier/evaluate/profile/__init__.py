"""How a model behaves, trait by trait: definitions, items, scores, figures, and what differs between two models."""
