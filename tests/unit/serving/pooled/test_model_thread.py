import threading

from lorakit.serving.pooled.model_thread import ModelThread


def test_functions_run_one_after_the_other_in_one_thread():
    thread = ModelThread("model")
    names = [thread.between_steps(lambda: threading.current_thread().name) for _ in range(3)]
    assert {future.result() for future in names} == {"model_0"}
    thread.stop()


def test_what_waits_is_finished_or_given_up():
    started, go_on = threading.Event(), threading.Event()
    for finish in (True, False):
        thread = ModelThread("model")
        started.clear(), go_on.clear()
        running = thread.between_steps(lambda: (started.set(), go_on.wait()))
        waiting = thread.between_steps(lambda: 1)
        started.wait()
        stopping = threading.Thread(target=thread.stop, kwargs={"finish_running": finish})
        stopping.start()
        while not finish and not waiting.cancelled():
            pass
        go_on.set()
        stopping.join()
        assert running.done()
        assert waiting.cancelled() is not finish
