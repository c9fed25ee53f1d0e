"""One table of models, features and operations that runs through PEFT and through lorakit."""
