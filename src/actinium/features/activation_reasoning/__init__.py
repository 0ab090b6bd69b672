"""ActivationReasoning: latents as named propositions, rules over them, and steering by what follows."""
