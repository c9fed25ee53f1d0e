"""Where the files of a new run go."""

from lorakit.studio.pages.new_run.outputs import free_output, recipe_path


def test_a_run_goes_into_runs_unless_the_folder_is_that(tmp_path):
    assert free_output(tmp_path, "data/My tickets.csv") == "runs/my-tickets"
    (tmp_path / "runs" / "my-tickets").mkdir(parents=True)
    assert free_output(tmp_path, "data/My tickets.csv") == "runs/my-tickets-2"
    assert free_output(tmp_path / "runs", "My tickets.csv") == "my-tickets-2"


def test_a_recipe_has_the_name_of_its_run(tmp_path):
    assert recipe_path(tmp_path, "runs/a") == "recipes/a.yaml"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").touch()
    assert recipe_path(tmp_path, "runs/a") == "recipes/a-2.yaml"
