"""The sentences that kinds put around a record's own words.

Written for this project, except the few that MetaMorph's paper and README quote.
"""

CAPTION_REQUESTS = (
    "Describe this image.",
    "What does this image show?",
    "Write a caption for this picture.",
    "Say in a sentence what can be seen here.",
    "What is in this picture?",
    "Give a short description of the image.",
    "Put into words what you see.",
    "How would you caption this?",
    "Tell me what this is a picture of.",
    "Sum up this image in a few words.",
    "What am I looking at?",
    "Please describe the picture above.",
)

# Before the question of a visual-thinking sample.
THINKING_REQUESTS = (
    "",
    "Visualize the critical area,",
    "Think visually before you answer the question:",
    "Look closely before you answer:",
    "Show the part that matters, then answer:",
    "First find the place to look at, then answer:",
    "Point out what the answer depends on:",
    "Take a closer look at the image first:",
    "Let the image guide your answer:",
    "Show where you look, then reply:",
    "Find the evidence in the image first:",
    "Bring the important detail into view and answer:",
    "Study the relevant region before replying:",
)
# Before the image of its answer, by what that image is.
THOUGHTS = {
    "crop": (
        "",
        "Let's consider this visually:",
        "I will think about it visually.",
        "Looking closer at the part that matters:",
        "This is the part to look at:",
        "A closer view helps:",
        "Zooming in on the region in question:",
        "The answer can be seen here:",
        "Here is the relevant detail:",
        "I look at this region first:",
        "Let me enlarge the place that counts:",
        "This region tells:",
        "The important part, seen up close:",
        "First, the detail in question:",
        "Let me take a closer look:",
        "From here one can tell:",
    ),
    "boxes": (
        "",
        "Let's consider this visually:",
        "I will think about it visually.",
        "I mark what matters with boxes:",
        "The boxes show where to look:",
        "Here it is, framed in the image:",
        "Let me frame the parts in question:",
        "Boxes around what the answer depends on:",
        "I outline the relevant regions first:",
        "The answer lies in these boxes:",
        "This is where I look, marked by boxes:",
        "Let me find them and draw boxes around them:",
        "Marked in the image, for certainty:",
        "The places to look at are framed:",
        "First I point them out with boxes:",
        "With the relevant regions outlined:",
    ),
}
KEY_ELEMENTS = "Key elements: {names}."

# Two frames of a video: the first is shown, the second is the answer.
TWO_FRAMES = (
    "This is a frame of a video. Predict the frame {apart} later.",
    "What will this look like in {apart}?",
    "Show this scene after {apart}.",
    "Let {apart} pass and show the next frame.",
    "How does this scene look {apart} from now?",
    "Imagine the video goes on for {apart}. Show that moment.",
    "Draw what happens in the {apart} after this frame, as one frame.",
    "Which frame comes {apart} after this one?",
    "Move this video forward by {apart}.",
    "Given this moment, show the one {apart} later.",
    "Predict how the scene has changed after {apart}.",
    "What happens next in this video? Show the frame.",
)
TWO_FRAMES_ANSWER = "The next frame: "

# Three frames and more: {shown} and {asked} are "1 frame" or "5 frames", {apart} is "0.5 seconds".
VIDEO_REQUESTS = {
    "following": (
        "This frame begins a clip. Show the {asked} that come after it, {apart} apart.",
        "A clip starts like this. Predict {asked}, one after every {apart}.",
        "From this first frame on, show how the video goes on: {asked} at steps of {apart}.",
    ),
    "continuation": (
        "These are the first {shown} of a clip, {apart} apart. Continue with {asked}.",
        "A clip begins with these {shown}, {apart} apart. Show the remaining {asked} at that pace.",
        "Time between these {shown} is {apart}. Complete the clip with {asked}.",
    ),
    "reverse": (
        "This frame ends a clip. Show the {asked} before it, backwards in time, {apart} apart.",
        "A clip ends like this. Go back in steps of {apart} and show {asked}, the latest first.",
        "How did it come to this? Show {asked}, each {apart} earlier than the one before.",
    ),
    "missing": (
        "The frames of a clip are {apart} apart, but every second one is left out here. Show the "
        "{asked} that belong between or after these.",
        "Every other frame of this clip is missing. Full, its frames are {apart} apart. Show the "
        "missing {asked}.",
        "Fill in {asked}: what is shown {apart} after each of these frames, up to the end of the "
        "clip?",
    ),
    "order": (
        "These {shown} of a clip are shuffled. Show them in order of time, {apart} apart.",
        "Put these {shown} back into their order in the video. They are {apart} apart.",
        "The order of these {shown} is lost. Sort them by time; the steps are {apart}.",
    ),
    "interval": (
        "How much time passes from each of these {shown} to the next?",
        "These {shown} of a clip are evenly spaced. How far apart are they?",
        "What is the time between two neighbours of these {shown}?",
    ),
    "next": (
        "These {shown} are {apart} apart. Show what comes next: {asked}.",
        "Predict the next {asked} after these {shown}, at the same pace of {apart}.",
        "The video goes on after these {shown}. Show {asked} more, {apart} apart.",
    ),
}
VIDEO_ANSWERS = {
    "following": "The clip goes on like this: ",
    "continuation": "It continues with: ",
    "reverse": "Going back in time: ",
    "missing": "What was left out: ",
    "order": "In order of time: ",
    "interval": "One frame and the next are {apart} apart.",
    "next": "Next comes: ",
}
