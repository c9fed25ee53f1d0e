from lorakit.serving.http.merged_metrics import merged_text
from lorakit.serving.http.metrics import Metrics


def test_figures_of_several_servers_differ_by_a_label():
    servers = {"a": Metrics(), "b": Metrics()}
    servers["a"].count("german", "/v1/completions", 200, 0.3, 5, 7)
    servers["b"].count("german", "/v1/completions", 200, 0.1, 2, 0)
    text = merged_text({name: metrics.text() for name, metrics in servers.items()}).decode()
    labels = 'model="german",path="/v1/completions",replica="{}",status="200"'
    for name in servers:
        assert f"lorakit_requests_total{{{labels.format(name)}}} 1.0" in text
    assert 'lorakit_tokens_total{direction="input",model="german",replica="b"} 2.0' in text
    assert 'lorakit_request_seconds_sum{path="/v1/completions",replica="a"} 0.3' in text
    assert text.count("# TYPE lorakit_requests_total counter") == 1
