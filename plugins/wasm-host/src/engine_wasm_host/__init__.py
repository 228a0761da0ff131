"""What the WebAssembly runtimes share; a library, no plugin: the runtimes import it, it provides no driver itself.

    daemon            driver -> modules, cache                    never imports wasmtime
    compiler child    compiler -> wasmtime_engine                 reads a module, writes machine code; confined
    launcher          guest -> sandbox, command, wasmtime_engine  imports wasmtime, makes no thread
      monitor         guest.prepare
        the container guest.main                                  one process for each container

Modules of the launcher's half import `engine.kernel` and the standard library, nothing else of the engine.
"""
