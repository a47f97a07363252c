# Habit's way to ./run.
.PHONY: demo test build bench format lint
demo test build bench format lint:
	./run $@ $(ARGS)
