# Sourced by run_*.sh: the checks of a script's variables and arguments, and the functions that carry its commands out,
# or with DRY_RUN=1 print them. What tasks and methods there are, and what is published for them, the code says:
# options.py answers at once and needs no packages. The variables of a script stand at its top, as NAME=${NAME:-default}.

# refuse MESSAGE...: ends the script, status 2
refuse() {
    echo "$(basename "$0"): error: $*" >&2
    exit 2
}

# ask WORD...: what options.py says, by the first Python that can read it
ask() {
    local name
    for name in python3 .venv/bin/python python3.14 python3.13 python3.12 python3.11; do
        "$name" options.py "$@" 2>/dev/null && return
    done
    refuse "no Python here can read options.py, which needs 3.11 or newer: python3 options.py says what is wrong"
}

names=$(ask) || exit 2
eval "$names"  # ALL_TASKS: those of run_glue.sh; ALL_METHODS; ALL_TERMS; ALL_MAPS; DISTILLATION: options that need
# a teacher

# A variable of this script in the singular or plural would be passed over without a word.
variables=" $(echo $(sed -n 's/^\([A-Z_]*\)=\${\1[:-].*/\1/p' "${0##*/}")) "
for variable in $variables; do
    case $variable in
        TERMS) continue ;;  # TERM is the terminal
        CRITERIA) sister=CRITERION ;;
        *S) sister=${variable%S} ;;
        *) sister=${variable}S ;;
    esac
    [ -z "${!sister:-}" ] || [[ $variables == *" $sister "* ]] ||
        refuse "$sister is no variable of this script: set $variable (see its top), or unset $sister"
done

# switch VARIABLE: on with 1, which it then holds, off when empty, 0 or no, and then empty; anything else is refused
switch() {
    case ${!1} in
        1) ;;
        "" | 0 | no) printf -v "$1" %s "" ;;
        *) refuse "$1 is ${!1}: use 1 for yes; 0, no or nothing for no" ;;
    esac
}

# check VARIABLE NAMES [REGEX]: ends the script, status 2, unless the variable holds words and each is one of the names;
# with a regex, unless each matches it, and NAMES says what does
check() {
    local values=${!1} word known=${3:-${2// /|}}
    [[ $values =~ [^[:space:]] ]] || refuse "$1 is blank: use $2"
    for word in $values; do
        [[ $word =~ ^($known)$ ]] || refuse "$1 names $word: use $2"
    done
}

# split_options ARGUMENT...: options of distilling with their values go into the array distilling, others into others
split_options() {
    local word to=others
    others=() distilling=()
    for word in "$@"; do
        if [[ $word == --* ]]; then
            if [[ " $DISTILLATION " == *" ${word%%=*} "* ]]; then to=distilling; else to=others; fi
        fi
        if [ "$to" = distilling ]; then distilling+=("$word"); else others+=("$word"); fi
    done
}

# find_precision ARGUMENT...: --mixed_precision and its value go into the array precision
find_precision() {
    local word before=
    precision=()
    for word in "$@"; do
        case $before/$word in
            --mixed_precision/*) precision=(--mixed_precision "$word") ;;
            */--mixed_precision=*) precision=("$word") ;;
        esac
        before=$word
    done
}

# check_options ARGUMENT...: ends the script, status 2, at an option that must differ between its commands
check_options() {
    local word
    for word in "$@"; do
        case ${word%%=*} in
            --task | --teacher | --student | --terms | --run_name | --seed | --output_dir)
                refuse "${word%%=*} would be the same in all commands: set the script's variables instead, see its top" ;;
        esac
    done
}

# start FUNCTION ARGUMENT...: carries out the commands that the function hands to run, or prints them with DRY_RUN.
# Before the first is carried out, each says whether it would begin, once for all seeds; with --check_only among the
# script's arguments that is all.
start() {
    local commands=$1 checking= launcher
    shift
    if [ -z "$DRY_RUN" ]; then
        source scripts/setup.sh
        read -r launcher _ <<<"$LAUNCH"
        type -P "$launcher" >/dev/null || refuse "LAUNCH names '$launcher', which is no command here"
        check_student
        check_all "$commands"
        [[ " $* " != *" --check_only "* ]] || exit 0
    fi
    "$commands"
}

# check_all FUNCTION: its commands with --check_only, and with the first seed
check_all() {
    local checking=1 seed
    for seed in $SEEDS; do break; done
    local SEEDS=$seed
    "$1"
}

# check_student: ends the script, status 2, if STUDENT is no model, which else is seen when the teacher has been trained
check_student() {
    [[ $variables == *" STUDENT "* && -n $STUDENT && $STUDENT != "${TEACHER:-}" ]] || return 0
    python - "$STUDENT" "$(basename "$0")" <<'PYTHON'
import sys
import models
from engine import command_line
name, sys.argv[0] = sys.argv[1:]
command_line.quiet()
command_line.run_script(lambda: models.load_config(name, "STUDENT"))
PYTHON
}

# run COMMAND...: carries it out; with DRY_RUN prints it as one line, quoted so that it can be pasted; while the commands
# are checked, asks a training script whether it would begin
run() {
    local line
    if [ -n "$checking" ]; then
        while [[ $1 != distill_*.py ]]; do shift && [ $# -gt 0 ] || return 0; done
        python "$@" --check_only
    elif [ -n "$DRY_RUN" ]; then
        printf -v line '%q ' "$@" && printf '%s\n' "${line% }"
    else
        "$@"
    fi
}

# method_options METHOD: how a method is distilled. Weights of ckd and the temperature of ckd and kd are the task's, which
# the code fills in, unless TERMS and TEMPERATURE say others; the other methods have their own
method_options() {
    case $1 in
        ckd) echo --terms ${TERMS:-ckd} ${TEMPERATURE:+--temperature "$TEMPERATURE"} ;;
        kd) echo --terms kd ${TEMPERATURE:+--temperature "$TEMPERATURE"} ;;
        finetune) ;;
        *) echo --terms "$1" ;;
    esac
}

# own_data ARGUMENT...: the options of DATA_OPTIONS, for TASKS=custom, into the array own; quotes hold blanks together.
# The name of that task's folder, --dataset_name where it is given there or among the arguments, into own_folder.
own_data() {
    local words word before=
    own=() own_folder=custom
    if [[ $DATA_OPTIONS =~ [^[:space:]] ]]; then
        [[ " ${TASKS:-${TASK:-}} " == *" custom "* ]] || refuse "DATA_OPTIONS are for custom: name it among the tasks"
        words=$(xargs printf '%s\n' <<<"$DATA_OPTIONS" 2>/dev/null) || refuse "DATA_OPTIONS has a quote without its end"
        while IFS= read -r word; do own+=("$word"); done <<<"$words"
        check_options "${own[@]}"
    fi
    for word in ${own[@]+"${own[@]}"} "$@"; do
        case $before/$word in
            --dataset_name/*) own_folder=$word ;;
            */--dataset_name=*) own_folder=${word#*=} ;;
        esac
        before=$word
    done
}

# enter TASK: options that say where its data are, into the array data; its folder below $RUNS into place
enter() {
    place=$1 data=(${DATA_DIR:+--data_dir "$DATA_DIR"})
    [ "$1" != custom ] || place=$own_folder data=(${own[@]+"${own[@]}"})
}

# schedule TASK: learning rate and epochs of its students, also of one without a teacher, whom the code gives no recipe
schedule() {
    local rate epochs
    read -r _ _ _ rate epochs < <(ask recipe "$1")
    echo --learning_rate "${LEARNING_RATE:-$rate}" --num_train_epochs "${EPOCHS:-$epochs}"
}

# train_teacher TASK OPTIONS...: $RUNS/<task>/teacher/seed1, which the students of that task learn from
train_teacher() {
    local task=$1
    shift
    enter "$task"
    run $LAUNCH distill_finetune.py --task "$task" ${data[@]+"${data[@]}"} --student "$TEACHER" --run_name teacher \
        --seed 1 --learning_rate "$TEACHER_LEARNING_RATE" --num_train_epochs "$TEACHER_EPOCHS" \
        --output_dir "$RUNS/$place/teacher/seed1" "$@"
}

# check_recipes METHOD...: ends the script, status 2, unless the file $RECIPES has a line for each method and no variable
# names what stands there
check_recipes() {
    local method variable word
    for word in ${others[@]+"${others[@]}"} ${distilling[@]+"${distilling[@]}"}; do
        [[ " --learning_rate $DISTILLATION " != *" ${word%%=*} "* || $word == --cache_teacher ]] ||
            refuse "${word%%=*} and RECIPES both say how a student is trained: leave one out"
    done
    for variable in TERMS TEMPERATURE LEARNING_RATE; do
        [ -z "${!variable:-}" ] || refuse "$variable and RECIPES both say how a student is trained: set one of them"
    done
    [ -f "$RECIPES" ] && [ -r "$RECIPES" ] || refuse "RECIPES names $RECIPES, which cannot be read"
    for method in "$@"; do
        [ -n "$(recipe_of "$method")" ] || refuse "$RECIPES has no options for $method: put it into METHODS of" \
            "run_sweep.sh, or leave it out of METHODS"
    done
}

# recipe_of METHOD: its options in the file $RECIPES, which holds a line "METHOD OPTION..." for each method; what follows
# a # is left out, and so are the marks that Windows leaves
recipe_of() {
    awk -v method="$1" 'NR == 1 { sub(/^\357\273\277/, "") } { sub(/\r$/, ""); sub(/#.*/, "") }
        $1 == method && NF > 1 { sub(/^[ \t]*[^ \t]+[ \t]+/, ""); print; exit }' < "$RECIPES"
}
