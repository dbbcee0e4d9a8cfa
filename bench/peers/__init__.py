"""llmcore beside other runtimes on the same machine, in the same minutes.

`python bench/peers/llama_cpp.py` is the command. Another peer is one class in runtimes.py and its rows.
"""
