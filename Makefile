# Habit's way to ./run.
.PHONY: demo test build bench fuzz format lint
demo test build bench fuzz format lint:
	./run $@ $(ARGS)
