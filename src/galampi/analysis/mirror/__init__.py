"""`mirror`: runs followed from their files into other programs, on the login node; the job knows nothing of it.

`command` looks again and again, `following` at one run, whose `rows` go to every `place`: `tensorboard`, and by the
rules of `lasting`, for places that cannot forget, `wandb` and `mlflow`.
"""
