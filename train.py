"""Trains, validates, tests or predicts: `python train.py experiment=shapes`."""

from mrcnn_lightning.app.run import main

if __name__ == "__main__":
    main()
