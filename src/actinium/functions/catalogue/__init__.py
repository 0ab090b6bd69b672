"""The tables of the catalogue, one module for each family; `actinium.functions.registry` reads them."""
