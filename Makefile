# Two commands for a newcomer: make demo, make test. While you work: make quick.
PYTHON ?= python3
BIN := .venv/bin
SENTENCES := "Hello! I am an AI voice assistant." \
  "Eight months to Mars. Counter-orbital slingshot around, fourteen months to Saturn."
WORKERS ?= 2
QUICK := not slow and not browser and not process and not gpu
ROOT_FLAGS := $(if $(filter 0,$(shell id -u)),--allow-root)
.PHONY: demo test quick fuzz lint docs lab clean

demo: .venv/installed
	$(BIN)/workbench speak $(SENTENCES) --name voice_clone --out output --trace summary --overwrite
	$(BIN)/workbench report output/voice_clone_1_0.trace --out output/report.html
	@echo
	@echo "Listen to output/voice_clone_0_0.wav and output/voice_clone_1_0.wav; open output/report.html in a browser."
	@echo "The case's first fault is one option away:"
	@echo "  $(BIN)/workbench speak 'Hello!' --option n_timesteps=1 --name one_step"
	@echo "Then 'make lab', which opens notebooks/00-start-here.ipynb."

# Two workers of one thread each: the models are small, and more threads would wait for each other.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder

quick: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(QUICK)" --hypothesis-profile=quick -n $(WORKERS)

fuzz: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz --fuzz-cases 20000

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: .venv/installed
	$(BIN)/sphinx-build -W -b html notebooks output/docs
	@echo "Open output/docs/index.html in a browser."

# The announcements are those of JupyterLab: a question in front of the first notebook, and requests for news.
lab: .venv/installed
	$(BIN)/python -m ipykernel install --prefix .venv --name python3 --display-name "Workbench"
	$(BIN)/jupyter labextension disable --level sys_prefix @jupyterlab/apputils-extension:announcements
	$(BIN)/jupyter lab $(ROOT_FLAGS) --notebook-dir notebooks notebooks/00-start-here.ipynb

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv output
